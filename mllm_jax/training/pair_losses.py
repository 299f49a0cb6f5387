"""Losses of pairs of an image and its text: which belongs to which, told apart from all others of the global batch.

M pairs; `valid` says which of their places hold one. Every text but an image's own counts as another one, and likewise
every image, even where two of them are equal.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOWEST = jnp.finfo(jnp.float32).min


class Negatives(NamedTuple):
    """One wrong partner for each image and for each text; its own where there is no other."""

    texts: Int[Array, " M"]
    """Of the images."""
    images: Int[Array, " M"]
    """Of the texts."""


def mean_over(valid: Bool[Array, "*M"], values: Float[Array, "*M"]) -> Float[Array, ""]:
    """The mean of the values that count; 0 where none does."""
    return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(valid), 1)


def contrastive_loss(logits: Float[Array, "M M"], valid: Bool[Array, " M"], smoothing: float = 0.0) -> Float[Array, ""]:
    """The mean cross-entropy of finding each image's text and each text's image.

    Args:
        logits: likeness of images (rows) to texts (columns), divided by the temperature.
        valid: which of them there are.
        smoothing: share of the target's probability that goes to all candidates alike.
    """
    return (_found(logits, valid, smoothing) + _found(logits.T, valid, smoothing)) / 2


def _found(logits: Float[Array, "M M"], valid: Bool[Array, " M"], smoothing: float) -> Float[Array, ""]:
    normaliser = jax.nn.logsumexp(jnp.where(valid, logits, LOWEST), axis=1)
    chosen = jnp.diagonal(logits)
    if smoothing:
        mean = jnp.sum(jnp.where(valid, logits, 0), axis=1) / jnp.maximum(jnp.sum(valid), 1)
        chosen = (1 - smoothing) * chosen + smoothing * mean
    return mean_over(valid, normaliser - chosen)


def sigmoid_loss(logits: Float[Array, "M M"], valid: Bool[Array, " M"]) -> Float[Array, ""]:
    """The mean over images of the summed cross-entropy of telling, for every text, whether it is theirs.

    Args:
        logits: of images (rows) and texts (columns) belonging together.
        valid: which of them there are.
    """
    sign = 2 * jnp.eye(len(logits)) - 1
    told = jnp.where(valid, jax.nn.log_sigmoid(sign * logits), 0)
    return mean_over(valid, -jnp.sum(told, axis=1))


def recalled(logits: Float[Array, "M M"], valid: Bool[Array, " M"]) -> Float[Array, ""]:
    """Share of the rows whose own column is the likest of all (recall at 1)."""
    likest = jnp.argmax(jnp.where(valid, logits, LOWEST), axis=1)
    return mean_over(valid, (likest == jnp.arange(len(logits))).astype(jnp.float32))


def hard_negatives(key: Array, logits: Float[Array, "M M"], valid: Bool[Array, " M"]) -> Negatives:
    """Wrong partners, drawn the more often the liker they are: by the softmax of the logits without the right one."""
    wrong = jnp.where(jnp.eye(len(logits), dtype=bool) | ~valid, LOWEST, jax.lax.stop_gradient(logits))
    keys = jax.random.split(key)
    texts = jax.random.categorical(keys[0], wrong, axis=1)
    wrong = jnp.where(jnp.eye(len(logits), dtype=bool) | ~valid, LOWEST, jax.lax.stop_gradient(logits.T))
    images = jax.random.categorical(keys[1], wrong, axis=1)
    own = jnp.arange(len(logits))
    there_are = jnp.sum(valid) > 1
    return Negatives(jnp.where(there_are, texts, own), jnp.where(there_are, images, own))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def kept_within(value: Float[Array, ""], low: float, high: float) -> Float[Array, ""]:
    """A learned number in its bounds. Past one, it learns still, but only what leads back."""
    return jnp.clip(value, low, high)


def _kept_forward(value: Float[Array, ""], low: float, high: float) -> tuple[Array, Array]:
    return jnp.clip(value, low, high), value


def _kept_backward(low: float, high: float, value: Array, gradient: Array) -> tuple[Array]:
    leads_out = ((value >= high) & (gradient < 0)) | ((value <= low) & (gradient > 0))
    return (jnp.where(leads_out, 0, gradient),)


kept_within.defvjp(_kept_forward, _kept_backward)
