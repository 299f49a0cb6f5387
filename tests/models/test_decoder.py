"""Packing, padding and caching change nothing that a token sees."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from mllm_jax.models.decoder import Decoder, DecoderConfig, make_cache
from mllm_jax.models.layers.stack import StackConfig
from tests.support.parameters import drawn_parameters

SHAPE = {"vocab_size": 50, "width": 36, "layers": 2, "heads": 9, "kv_heads": 3, "head_width": 4}
CONFIG = DecoderConfig(**SHAPE, feed_forward_width=52)
MODEL = Decoder(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 50, 12)


@pytest.fixture(scope="module")
def parameters() -> dict:
    return drawn_parameters(CONFIG)


def run(module: Decoder, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    hidden, _ = module(module.embed(tokens), segment_ids, positions)
    return module.logits(hidden)


@partial(jax.jit, static_argnums=0)
def logits(model: Decoder, parameters: dict, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array):
    return model.apply({"params": parameters}, tokens, segment_ids, positions, method=run)


def alone(parameters: dict, tokens: np.ndarray, model: Decoder = MODEL) -> np.ndarray:
    length = len(tokens)
    inputs = jnp.asarray(tokens)[None], jnp.ones((1, length), jnp.int32), jnp.arange(length)[None]
    return np.asarray(logits(model, parameters, *inputs))[0]


def test_a_packed_segment_sees_nothing_of_its_neighbours(parameters: dict) -> None:
    pieces = TOKENS[:5], TOKENS[5:8], TOKENS[8:]
    segment_ids = np.repeat([1, 2, 3, 0], [5, 3, 4, 4])[None]
    positions = np.concatenate([np.arange(5), np.arange(3), np.arange(4), np.zeros(4, int)])[None]
    row = np.concatenate([TOKENS, np.zeros(4, int)])[None]
    packed = np.asarray(logits(MODEL, parameters, jnp.asarray(row), jnp.asarray(segment_ids), jnp.asarray(positions)))
    expected = np.concatenate([alone(parameters, piece) for piece in pieces])
    np.testing.assert_allclose(packed[0, :12], expected, atol=1e-5)


def test_padding_gives_numbers_and_finite_gradients(parameters: dict) -> None:
    zeros = jnp.zeros((2, 6), jnp.int32)
    segment_ids = zeros.at[0, :3].set(1)

    def total(parameters: dict) -> jax.Array:
        return logits(MODEL, parameters, zeros, segment_ids, zeros).sum()

    value, gradients = jax.jit(jax.value_and_grad(total))(parameters)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_token_does_not_see_later_ones(parameters: dict) -> None:
    changed = TOKENS.copy()
    changed[7] = (changed[7] + 1) % 50
    before, after = alone(parameters, TOKENS), alone(parameters, changed)
    np.testing.assert_allclose(before[:7], after[:7], atol=1e-6)
    assert np.abs(before[7:] - after[7:]).max(axis=-1).min() > 1e-4


@pytest.mark.parametrize("scan", [True, False])
def test_cached_steps_equal_one_forward_for_rows_of_different_lengths(scan: bool) -> None:
    config = CONFIG.model_copy(update={"stack": StackConfig(scan=scan)})
    model, parameters = Decoder(config), drawn_parameters(config)

    @jax.jit
    def step(cache, tokens, segment_ids, positions):
        def read(module: Decoder):
            hidden, new = module(module.embed(tokens), segment_ids, positions, cache)
            return module.logits(hidden), new

        return model.apply({"params": parameters}, method=read)

    prompts, total = (3, 6), 9
    prefill = np.stack([np.where(np.arange(6) < length, TOKENS[:6], 0) for length in prompts])
    valid = jnp.asarray([np.arange(6) < length for length in prompts], jnp.int32)
    cache = make_cache(config, rows=2, length=total, dtype=jnp.float32)
    first, cache = step(cache, jnp.asarray(prefill), valid, jnp.broadcast_to(jnp.arange(6), (2, 6)))
    assert cache.lengths.tolist() == [3, 6]
    expected = alone(parameters, TOKENS[:total], model)
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(first[row, :length], expected[:length], atol=1e-5)
    for _ in range(total - max(prompts)):
        positions = cache.lengths[:, None]
        tokens = jnp.asarray(TOKENS)[positions]
        outputs, cache = step(cache, tokens, jnp.ones((2, 1), jnp.int32), positions)
        for row in range(2):
            np.testing.assert_allclose(outputs[row, 0], expected[int(positions[row, 0])], atol=1e-5)


def test_a_finished_row_stands_still_while_others_go_on(parameters: dict) -> None:
    cache = make_cache(CONFIG, rows=2, length=4, dtype=jnp.float32)
    tokens, segment_ids = jnp.ones((2, 1), jnp.int32), jnp.asarray([[1], [0]])
    embeddings = jnp.zeros((2, 1, 36))
    _, cache = jax.jit(MODEL.apply)({"params": parameters}, embeddings, segment_ids, tokens, cache)
    assert cache.lengths.tolist() == [1, 0]


def test_an_id_outside_the_vocabulary_is_loud(parameters: dict) -> None:
    assert np.isnan(alone(parameters, np.array([3, 50]))[1]).all()


def test_logits_are_float32_whatever_is_computed(parameters: dict) -> None:
    model = Decoder(CONFIG, dtype=jnp.bfloat16)
    close = alone(parameters, TOKENS, model)
    assert close.dtype == np.float32
    exact = alone(parameters, TOKENS)
    assert np.abs(close - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kv_heads": 2}, "heads 9 is not a multiple of kv_heads 2"), ({"head_width": 3}, "head_width 3 is odd")],
)
def test_contradictions_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DecoderConfig(**(SHAPE | change), feed_forward_width=52)
