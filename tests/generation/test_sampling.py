"""Sampling agrees with the logits warpers of transformers on drawn cases."""

import jax
import numpy as np
import pytest
import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mllm_jax.generation.sampling import SamplingConfig, keep_top_k, keep_top_p, sample, warp


def drawn_logits(seed: int, rows: int = 4, vocabulary: int = 37) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3.0, size=(rows, vocabulary)).astype(np.float32)


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    scores = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 100])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_warped_logits_equal_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = drawn_logits(seed=int(temperature * 10) + top_k)
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    np.testing.assert_allclose(warp(logits, config), reference(logits, temperature, top_k, top_p), rtol=1e-6)


def test_ties_with_the_last_kept_token_stay() -> None:
    logits = np.array([[2.0, 1.0, 1.0, 0.0]], np.float32)
    assert np.isfinite(np.asarray(keep_top_k(logits, 2))).tolist() == [[True, True, True, False]]


def test_top_p_keeps_at_least_the_most_probable_token() -> None:
    kept = np.isfinite(np.asarray(keep_top_p(drawn_logits(seed=0), 1e-6)))
    assert kept.sum(axis=-1).tolist() == [1, 1, 1, 1]


def test_temperature_zero_is_greedy() -> None:
    logits = drawn_logits(seed=1)
    tokens = sample(logits, jax.random.key(0), SamplingConfig())
    assert np.asarray(tokens).tolist() == logits.argmax(axis=-1).tolist()


def test_draws_follow_the_kept_distribution_and_repeat_under_one_key() -> None:
    logits = np.tile(drawn_logits(seed=2, rows=1), (512, 1))
    config = SamplingConfig(temperature=1.0, top_k=3)
    tokens = np.asarray(sample(logits, jax.random.key(7), config))
    assert set(tokens.tolist()) == set(np.argsort(logits[0])[-3:].tolist())
    assert (tokens == np.asarray(sample(logits, jax.random.key(7), config))).all()
