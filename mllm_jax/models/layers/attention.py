"""Self-attention; grouped key/value heads, rotary positions, a cache, a prefix and a visual expert are optional."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, jaxtyped

from mllm_jax.models.layers.cache import KVCache, write_layer
from mllm_jax.models.layers.media import where_image
from mllm_jax.models.layers.norms import NORMS, NormName
from mllm_jax.models.layers.prefix import Prefix
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.rotary import rotate
from mllm_jax.models.layers.virtual_tokens import KeysAndValues


def attend(
    query: Float[Array, "B T H C"],
    key: Float[Array, "B S K C"],
    value: Float[Array, "B S K C"],
    mask: Bool[Array, "B 1 T S"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "B T H C"]:
    """Scaled dot-product attention; softmax in float32, H a multiple of K. The one place that chooses a kernel.

    Args:
        query, key, value: heads, with positions already in them.
        mask: what each query may see; None: everything.
        scale: factor of the dot products; None: 1/sqrt(C).
        soft_cap: scores are kept between this and its negative by a tanh; None: as they are.
    """
    if soft_cap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation="xla")
    rows, tokens, heads, head_width = query.shape
    grouped = query.reshape(rows, tokens, key.shape[2], -1, head_width)
    scores = jnp.einsum("btkgc,bskc->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = soft_capped(scores * (scale or 1 / math.sqrt(head_width)), soft_cap)
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskc->btkgc", weights, value).reshape(rows, tokens, heads, head_width)


def soft_capped(values: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """`cap * tanh(values / cap)`: values bent to stay within the cap (https://arxiv.org/abs/2408.00118)."""
    return cap * jnp.tanh(values / cap)


class SelfAttention(nn.Module):
    heads: int
    kv_heads: int
    head_width: int
    bias: bool
    """Of the queries, keys and values."""
    output_bias: bool | None = None
    """None: as `bias`."""
    scale: float | None = None
    soft_cap: float | None = None
    head_norm: NormName | None = None
    """Norm of every query and key head before its rotation; None: no norm."""
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T S"] | None = None,
        angles: tuple[Float[Array, "B T half"], Float[Array, "B T half"]] | None = None,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
        prefix: Prefix | None = None,
        at_image: Bool[Array, "B T"] | None = None,
        virtual: KeysAndValues | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """With a cache, the new keys and values are written to it and the queries read all of it through `mask`.

        Args:
            hidden: what queries, keys and values are made of.
            mask: what each query may see; None: everything.
            angles: of the rotary positions; None: heads are not turned.
            cache: of the tokens already read.
            layer: whose keys and values in the cache.
            prefix: what the queries read besides, through a softmax of its own.
            at_image: tokens that have projections of their own (a visual expert); None: there are none.
            virtual: keys and values of this layer that stand before all others, in `mask` too.
        """
        make_key, make_value = self.into_heads("key", self.kv_heads), self.into_heads("value", self.kv_heads)
        query, key, value = self.into_heads("query", self.heads)(hidden), make_key(hidden), make_value(hidden)
        if at_image is not None:
            query = where_image(at_image, self.into_heads("image_query", self.heads)(hidden), query)
            key = where_image(at_image, self.into_heads("image_key", self.kv_heads)(hidden), key)
            value = where_image(at_image, self.into_heads("image_value", self.kv_heads)(hidden), value)
        query_norm, key_norm = self.norm_of_heads("query_norm"), self.norm_of_heads("key_norm")
        query, key = query_norm(query), key_norm(key)
        query = nn.with_logical_constraint(query, ("rows", "tokens", "heads_activation", None))
        key = nn.with_logical_constraint(key, ("rows", "tokens", "kv_heads_activation", None))
        value = nn.with_logical_constraint(value, ("rows", "tokens", "kv_heads_activation", None))
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        if cache is not None:
            cache = write_layer(cache, layer, key, value)
            key, value = cache.keys[layer].astype(query.dtype), cache.values[layer].astype(query.dtype)
        if virtual is not None:
            key, value = virtual.before(key, value)
        read = attend(query, key, value, mask, self.scale, self.soft_cap)
        if prefix is not None:
            key, value = key_norm(make_key(prefix.embeddings)), make_value(prefix.embeddings)
            read = read + prefix.gate[:, None] * attend(query, key, value, prefix.mask, self.scale, self.soft_cap)
        output = self.out_of_heads("output", hidden.shape[-1])(read)
        if at_image is not None:
            output = where_image(at_image, self.out_of_heads("image_output", hidden.shape[-1])(read), output)
        return output, cache

    def into_heads(self, name: str, count: int) -> Projection:
        return Projection(
            shape=(count, self.head_width),
            input_axes=("embed",),
            output_axes=("heads" if name.endswith("query") else "kv_heads", "head_width"),
            bias=self.bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def out_of_heads(self, name: str, width: int) -> Projection:
        return Projection(
            shape=(width,),
            input_axes=("heads", "head_width"),
            output_axes=("embed",),
            bias=self.bias if self.output_bias is None else self.output_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def norm_of_heads(self, name: str) -> Callable[[Array], Array]:
        if self.head_norm is None:
            return lambda heads: heads
        return NORMS[self.head_norm](self.norm_epsilon, self.dtype, self.param_dtype, name=name, axis="head_width")
