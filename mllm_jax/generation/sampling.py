"""Choosing the next token from logits: greedy, temperature, top-k and top-p, as pure functions.

The order (temperature, then top-k, then top-p) and the treatment of ties are those of the logits warpers of
`transformers`, so that a setting means the same on the exported model.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from pydantic import Field

from data_pipelines.config_class import Config


class SamplingConfig(Config):
    """How the next token is drawn."""

    temperature: float = Field(default=0.0, ge=0.0)
    """Divides the logits; 0 takes the most probable token always (greedy)."""
    top_k: int = Field(default=0, ge=0)
    """Draw among the k most probable tokens; 0 = no limit."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw among the fewest tokens whose probabilities add up to this; 1 = no limit."""


def scale_by_temperature(logits: Float[Array, "B V"], temperature: float) -> Float[Array, "B V"]:
    """Divide the logits by a temperature above 0."""
    return logits / temperature


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Set every logit below the k-th largest of its row to minus infinity; ties with the k-th stay."""
    smallest_kept = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < smallest_kept, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keep the fewest tokens whose probabilities reach p ("nucleus", arXiv:1904.09751), at least one a row."""
    order = jnp.argsort(logits, axis=-1)
    ascending = jnp.take_along_axis(logits, order, axis=-1)
    below = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1.0 - p
    below = below.at[:, -1].set(False)
    dropped = jnp.take_along_axis(below, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(dropped, -jnp.inf, logits)


def warp(logits: Float[Array, "B V"], config: SamplingConfig) -> Float[Array, "B V"]:
    """Return the logits of the distribution that `config` (temperature above 0) draws from."""
    logits = scale_by_temperature(logits, config.temperature)
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    return logits


@partial(jax.jit, static_argnames="config")
def sample(logits: Float[Array, "B V"], key: Key[Array, ""], config: SamplingConfig) -> Int[Array, " B"]:
    """Return the next token of every row; the key is not used when the temperature is 0."""
    if config.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, warp(logits, config), axis=-1).astype(jnp.int32)
