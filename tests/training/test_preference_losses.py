"""The variants of preference tuning against their published formulas, written down in torch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mllm_jax.training.objectives.preference_losses import (
    BothAnswers,
    DPOConfig,
    IPOConfig,
    KTOConfig,
    ORPOConfig,
    Pairs,
    SimPOConfig,
    compare,
)

PAIRS = 6


def drawn(seed=0):
    """Summed log-probabilities of policy and reference, and lengths: f32[2, PAIRS] each, chosen first."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, (2, PAIRS)).astype(np.float32)
    policy, reference = (-lengths * random.exponential(1.0, (2, PAIRS)).astype(np.float32) for _ in range(2))
    return policy, reference, lengths


def pairs_of(policy, reference, lengths, there=None):
    there = np.ones(policy.shape[1], bool) if there is None else there
    return Pairs(BothAnswers(*policy), BothAnswers(*reference), BothAnswers(*lengths), there)


def dpo(config, policy, reference, lengths):
    logits = (policy[0] - policy[1]) - (reference[0] - reference[1])
    smoothing = config.label_smoothing
    return -F.logsigmoid(config.beta * logits) * (1 - smoothing) - F.logsigmoid(-config.beta * logits) * smoothing


def ipo(config, policy, reference, lengths):
    policy, reference = policy / lengths, reference / lengths
    logits = (policy[0] - policy[1]) - (reference[0] - reference[1])
    return (logits - 1 / (2 * config.beta)) ** 2


def kto(config, policy, reference, lengths):
    """The mean over both halves of the batch is twice the mean over pairs of half of each."""
    chosen_kl = (policy[0] - reference[0]).mean().clamp(min=0).detach()
    rejected_kl = (policy[1] - reference[1]).mean().clamp(min=0).detach()
    chosen = 1 - torch.sigmoid(config.beta * ((policy[0] - reference[0]) - rejected_kl))
    rejected = 1 - torch.sigmoid(config.beta * (chosen_kl - (policy[1] - reference[1])))
    return (config.desirable_weight * chosen + config.undesirable_weight * rejected) / 2


def orpo(config, policy, reference, lengths):
    policy = policy / lengths
    log_odds = (policy[0] - policy[1]) - (torch.log1p(-torch.exp(policy[0])) - torch.log1p(-torch.exp(policy[1])))
    return -policy[0] - config.odds_weight * F.logsigmoid(log_odds)


def simpo(config, policy, reference, lengths):
    policy = policy / lengths
    logits = (policy[0] - policy[1]) - config.gamma / config.beta
    return -F.logsigmoid(config.beta * logits)


VARIANTS = [
    (dpo, DPOConfig(beta=0.3)),
    (dpo, DPOConfig(beta=0.3, label_smoothing=0.2)),
    (ipo, IPOConfig(beta=0.2)),
    (kto, KTOConfig(beta=0.3)),
    (kto, KTOConfig(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)),
    (orpo, ORPOConfig(odds_weight=0.4)),
    (simpo, SimPOConfig(beta=2.5, gamma=0.7)),
]


@pytest.mark.parametrize(("formula", "config"), VARIANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_losses_and_gradients_are_those_of_the_formula(formula, config):
    policy, reference, lengths = drawn()
    if config.kind == "kto":
        # Policies that have moved away from the reference on both sides, so that neither estimate is cut to 0.
        policy = policy / 3

    def total(policy):
        losses = compare(config, pairs_of(policy, reference, lengths)).losses
        return jnp.sum(losses), losses

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(policy))
    theirs = torch.from_numpy(policy).requires_grad_()
    expected = formula(config, theirs, torch.from_numpy(reference), torch.from_numpy(lengths))
    expected.sum().backward()
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize(("formula", "config"), VARIANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_places_without_a_pair_change_nothing(formula, config):
    policy, reference, lengths = drawn()
    expected = compare(config, pairs_of(policy, reference, lengths))
    padded = [
        np.pad(values, ((0, 0), (0, 2)), constant_values=fill)
        for values, fill in ((policy, -7.0), (reference, 0.0), (lengths, 0.0))
    ]
    there = np.arange(PAIRS + 2) < PAIRS
    found = compare(config, pairs_of(*padded, there))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:PAIRS], b, rtol=1e-6), found, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_what_equals_its_reference_is_undecided():
    policy, _, lengths = drawn()
    losses = compare(DPOConfig(), pairs_of(policy, policy, lengths)).losses
    np.testing.assert_allclose(losses, math.log(2), atol=1e-7)
    assert compare(IPOConfig(beta=0.1), pairs_of(policy, policy, lengths)).losses == pytest.approx(25.0)


def test_a_beta_of_zero_learns_nothing():
    policy, reference, lengths = drawn()
    config = DPOConfig.model_construct(beta=0.0, label_smoothing=0.0)

    def total(policy):
        return jnp.mean(compare(config, pairs_of(policy, reference, lengths)).losses)

    loss, gradient = jax.value_and_grad(total)(jnp.asarray(policy))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7) and not np.any(gradient)


def test_certain_answers_have_finite_odds():
    policy, reference, lengths = drawn()
    policy[:, 0] = 0

    def total(policy):
        return jnp.sum(compare(ORPOConfig(), pairs_of(policy, reference, lengths)).losses)

    loss, gradient = jax.value_and_grad(total)(jnp.asarray(policy))
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_rewards_are_in_the_unit_of_the_comparison():
    policy, reference, lengths = drawn()
    pairs = pairs_of(policy, reference, lengths)
    np.testing.assert_allclose(compare(DPOConfig(beta=0.3), pairs).rewards, 0.3 * (policy - reference), rtol=1e-5)
    per_token = (policy - reference) / lengths
    np.testing.assert_allclose(compare(IPOConfig(beta=0.3), pairs).rewards, 0.3 * per_token, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(compare(SimPOConfig(beta=3.0), pairs).rewards, 3 * policy / lengths, rtol=1e-5)
