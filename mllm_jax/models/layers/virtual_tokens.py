"""Virtual tokens: learned ones that stand before the tokens of every segment.

Prompt tuning (https://arxiv.org/abs/2104.08691) learns their embeddings, prefix tuning
(https://arxiv.org/abs/2101.00190) their keys and values in every layer. They come first and attention is causal, so
that their keys and values depend on nothing else: they are made once, and every token of every row reads the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.models.layers.cache import KVCache

VIRTUAL = "virtual_tokens"
"""Beside a decoder's other parameters: what is learned of the tokens before every segment."""

EMBEDDINGS, KEYS, VALUES = "embeddings", "keys", "values"
"""What is learned of them: f32[V, D], or f32[L, V, K, C] twice. Keys have their positions already in them."""


def virtual_count(parameters: Mapping[str, Any]) -> int:
    """How many virtual tokens stand among a decoder's parameters."""
    given = parameters.get(VIRTUAL)
    if given is None:
        return 0
    return given[KEYS].shape[1] if KEYS in given else given[EMBEDDINGS].shape[0]


class KeysAndValues(NamedTuple):
    """Of the virtual tokens in all layers, or (without the axis L) in one."""

    keys: Float[Array, "*L V K C"]
    values: Float[Array, "*L V K C"]

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return self.keys.shape[-3]

    def of(self, layer: Int[Array, ""] | int) -> "KeysAndValues":
        """Those of one layer."""
        return KeysAndValues(self.keys[layer], self.values[layer])

    def before(
        self, key: Float[Array, "B S K C"], value: Float[Array, "B S K C"]
    ) -> tuple[Float[Array, "B S_ K C"], Float[Array, "B S_ K C"]]:
        """A layer's keys and values with those of its virtual tokens before them in every row."""
        return _before(self.keys, key), _before(self.values, value)

    def in_cache(self, cache: KVCache) -> KVCache:
        """The cache with the virtual tokens as the first that every row has read."""
        return KVCache(
            cache.keys.at[:, :, : self.length].set(self.keys[:, None].astype(cache.keys.dtype)),
            cache.values.at[:, :, : self.length].set(self.values[:, None].astype(cache.values.dtype)),
            cache.lengths + self.length,
        )


def _before(shared: Float[Array, "V K C"], own: Float[Array, "B S K C"]) -> Float[Array, "B S_ K C"]:
    every_row = jnp.broadcast_to(shared.astype(own.dtype), (own.shape[0], *shared.shape))
    return jnp.concatenate([every_row, own], axis=1)
