"""Self-attention with grouped key/value heads, rotary positions and a cache, each of them optional."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, jaxtyped

from mllm_jax.models.layers.cache import KVCache, write_layer
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.rotary import rotate


def attend(
    query: Float[Array, "B T H C"],
    key: Float[Array, "B S K C"],
    value: Float[Array, "B S K C"],
    mask: Bool[Array, "B 1 T S"] | None = None,
) -> Float[Array, "B T H C"]:
    """Scaled dot-product attention; softmax in float32, H a multiple of K. The one place that chooses a kernel."""
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


class SelfAttention(nn.Module):
    heads: int
    kv_heads: int
    head_width: int
    bias: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def project(self, name: str, count: int, axis: str) -> Projection:
        return Projection(
            shape=(count, self.head_width),
            input_axes=("embed",),
            output_axes=(axis, "head_width"),
            bias=self.bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T S"] | None = None,
        angles: tuple[Float[Array, "B T half"], Float[Array, "B T half"]] | None = None,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """With a cache, the new keys and values are written to it and the queries read all of it through `mask`."""
        query = self.project("query", self.heads, "heads")(hidden)
        key = self.project("key", self.kv_heads, "kv_heads")(hidden)
        value = self.project("value", self.kv_heads, "kv_heads")(hidden)
        query = nn.with_logical_constraint(query, ("rows", "tokens", "heads_activation", None))
        key = nn.with_logical_constraint(key, ("rows", "tokens", "kv_heads_activation", None))
        value = nn.with_logical_constraint(value, ("rows", "tokens", "kv_heads_activation", None))
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        if cache is not None:
            cache = write_layer(cache, layer, key, value)
            key, value = cache.keys[layer].astype(query.dtype), cache.values[layer].astype(query.dtype)
        output = Projection(
            shape=(hidden.shape[-1],),
            input_axes=("heads", "head_width"),
            output_axes=("embed",),
            bias=self.bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="output",
        )
        return output(attend(query, key, value, mask)), cache
