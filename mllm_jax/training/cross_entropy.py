"""The cross-entropy of tokens and of a batch, from all logits at once or from those of a few tokens at a time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

Logits = Callable[[Float[Array, "B T D"]], Float[Array, "B T V"]]
"""From hidden states to logits."""


class TokenLoss(NamedTuple):
    """What the loss of one token is; the defaults are the plain negative log-likelihood."""

    smoothing: float = 0.0
    """Share of the target's probability that goes to all tokens of the vocabulary alike."""
    z_weight: float = 0.0
    """Weight of the square of the logits' normaliser (z-loss, https://arxiv.org/abs/2204.02311)."""
    vocabulary: int | None = None
    """Tokens there are, where logits behind them only pad; None: all."""


PLAIN = TokenLoss()


def chunk_problem(chunk: int | None, row_length: int) -> str | None:
    """What keeps rows of so many tokens from being cut into chunks; None: nothing, or they are not cut."""
    if chunk is None or row_length % chunk == 0:
        return None
    return f"objective.chunk_tokens: {chunk} does not divide row_length {row_length}"


def token_losses(
    logits: Float[Array, "B T V"], targets: Int32[Array, "B T"], loss: TokenLoss = PLAIN
) -> Float[Array, "B T"]:
    """The loss of every token in nats, computed in f32."""
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if loss.smoothing:
        mean = jnp.mean(logits[..., : loss.vocabulary], axis=-1)
        chosen = (1 - loss.smoothing) * chosen + loss.smoothing * mean
    losses = normaliser - chosen
    if loss.z_weight:
        losses = losses + loss.z_weight * normaliser**2
    return losses


def weighted_cross_entropy(
    logits: Float[Array, "B T V"],
    targets: Int32[Array, "B T"],
    weights: Float[Array, "B T"],
    loss: TokenLoss = PLAIN,
) -> Float[Array, ""]:
    """Sum over all tokens of weight x loss, in nats, computed in f32."""
    return jnp.sum(weights * token_losses(logits, targets, loss))


def chunked_token_losses(
    logits_of: Logits,
    hidden: Float[Array, "B T D"],
    targets: Int32[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
    loss: TokenLoss = PLAIN,
) -> Float[Array, "B T"]:
    """`token_losses` of `logits_of(hidden)` where there is a weight, elsewhere 0, with never more than [B, chunk, V]
    logits at one time.

    Supervised tokens come first, so that a chunk in which no row of the global batch has one makes no logits. Whether
    it has is the same on every device, so all of them take the same way.

    Raises:
        ValueError: the chunk does not divide the row length.
    """
    rows, length, _ = hidden.shape
    if length % chunk:
        raise ValueError(f"objective.chunk_tokens {chunk} does not divide the row length {length}")
    order = jnp.argsort(weights == 0, axis=1, stable=True)

    def cut(array: Array) -> Array:
        ordered = jnp.take_along_axis(array, order.reshape(*order.shape, *(1,) * (array.ndim - 2)), axis=1)
        return jnp.swapaxes(ordered.reshape(rows, length // chunk, chunk, *array.shape[2:]), 0, 1)

    def measured(states: Array, targets: Array, weights: Array) -> Array:
        return jnp.where(weights != 0, token_losses(logits_of(states), targets, loss), 0.0)

    def nothing(states: Array, targets: Array, weights: Array) -> Array:
        return jnp.zeros(weights.shape, jnp.float32)

    @jax.checkpoint
    def of_chunk(part: tuple[Array, Array, Array]) -> Array:
        return jax.lax.cond(jnp.any(part[2] != 0), measured, nothing, *part)

    chunks = jax.lax.map(of_chunk, (cut(hidden), cut(targets), cut(weights)))
    ordered = jnp.swapaxes(chunks, 0, 1).reshape(rows, length)
    return jnp.take_along_axis(ordered, jnp.argsort(order, axis=1), axis=1)


def chunked_cross_entropy(
    logits_of: Logits,
    hidden: Float[Array, "B T D"],
    targets: Int32[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
    loss: TokenLoss = PLAIN,
) -> Float[Array, ""]:
    """`weighted_cross_entropy` of `logits_of(hidden)`, made as `chunked_token_losses` makes it."""
    return jnp.sum(weights * chunked_token_losses(logits_of, hidden, targets, weights, chunk, loss))
