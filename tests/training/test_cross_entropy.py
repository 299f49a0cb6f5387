import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mllm_jax.models.layers.vocabulary import without_padding
from mllm_jax.training.cross_entropy import TokenLoss, chunked_cross_entropy, weighted_cross_entropy

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 12, 5, 7


def drawn():
    random = np.random.default_rng(0)
    hidden = random.standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
    kernel = random.standard_normal((WIDTH, VOCABULARY)).astype(np.float32)
    targets = random.integers(0, VOCABULARY, (ROWS, LENGTH), np.int32)
    weights = random.integers(0, 2, (ROWS, LENGTH)) * random.random((ROWS, LENGTH))
    return hidden, kernel, targets, weights.astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
def test_the_loss_is_torchs_with_smoothing_and_z_loss(smoothing, z_weight):
    hidden, kernel, targets, weights = drawn()
    logits = torch.from_numpy(hidden) @ torch.from_numpy(kernel)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).long().flatten(), reduction="none", label_smoothing=smoothing
    )
    losses = losses + z_weight * torch.logsumexp(logits, -1).flatten() ** 2
    expected = float((losses * torch.from_numpy(weights).flatten()).sum())
    found = weighted_cross_entropy(hidden @ kernel, targets, weights, TokenLoss(smoothing, z_weight))
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_chunks_give_the_same_loss_and_gradient(chunk):
    hidden, kernel, targets, weights = (jnp.asarray(array) for array in drawn())
    loss = TokenLoss(0.1, 1e-2)

    def plain(hidden, kernel):
        return weighted_cross_entropy(hidden @ kernel, targets, weights, loss)

    def chunked(hidden, kernel):
        return chunked_cross_entropy(lambda states: states @ kernel, hidden, targets, weights, chunk, loss)

    expected = jax.value_and_grad(plain, (0, 1))(hidden, kernel)
    found = jax.jit(jax.value_and_grad(chunked, (0, 1)))(hidden, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)


def test_smoothing_gives_nothing_to_the_padding_of_a_vocabulary():
    hidden, kernel, targets, weights = drawn()
    padded = without_padding(jnp.pad(hidden @ kernel, ((0, 0), (0, 0), (0, 9))), VOCABULARY)
    found = weighted_cross_entropy(padded, targets, weights, TokenLoss(0.1, vocabulary=VOCABULARY))
    expected = weighted_cross_entropy(hidden @ kernel, targets, weights, TokenLoss(0.1))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
