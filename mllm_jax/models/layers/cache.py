"""Keys and values of the tokens already read, for generation."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class KVCache(NamedTuple):
    """One segment a row, rows of different lengths: a row's token number `s` lies in its slot `s`.

    Padding at the right end of a prompt is written too, beyond the row's length, and is overwritten by the tokens
    that follow before anything attends to it.
    """

    keys: Float[Array, "L B S K C"]
    values: Float[Array, "L B S K C"]
    lengths: Int[Array, " B"]
    """i32; tokens a row holds."""

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]


def empty_cache(layers: int, rows: int, capacity: int, kv_heads: int, head_width: int, dtype: Any) -> KVCache:
    """A cache for `capacity` tokens a row. Tokens written beyond the capacity are lost: the caller sizes it."""
    shape = (layers, rows, capacity, kv_heads, head_width)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows,), jnp.int32))


def next_slots(cache: KVCache, tokens: int) -> Int[Array, "B T"]:
    """The slots that the next `tokens` tokens of every row take."""
    return cache.lengths[:, None] + jnp.arange(tokens)


def write_layer(
    cache: KVCache, layer: int | Int[Array, ""], keys: Float[Array, "B T K C"], values: Float[Array, "B T K C"]
) -> KVCache:
    """Writes one layer's keys and values into the next slots; `advance` then moves the lengths, once for all layers."""
    rows = jnp.arange(keys.shape[0])[:, None]
    slots = next_slots(cache, keys.shape[1])
    return cache._replace(
        keys=cache.keys.at[layer, rows, slots].set(keys.astype(cache.keys.dtype), mode="drop"),
        values=cache.values.at[layer, rows, slots].set(values.astype(cache.values.dtype), mode="drop"),
    )


def advance(cache: KVCache, segment_ids: Int[Array, "B T"]) -> KVCache:
    """Counts the tokens just written; those of segment 0 (padding, at the right end) do not count."""
    return cache._replace(lengths=cache.lengths + jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32))
