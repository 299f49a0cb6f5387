"""Self-attention; grouped key/value heads, rotary positions, a cache, a prefix and a visual expert are optional."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, jaxtyped

from mllm_jax.models.layers.attention_kernels import XLA, AttentionConfig, attend
from mllm_jax.models.layers.axes import ROWS, BatchAxes
from mllm_jax.models.layers.cache import KVCache, write_layer
from mllm_jax.models.layers.masks import PackedMask
from mllm_jax.models.layers.materialised import materialised
from mllm_jax.models.layers.media import where_image
from mllm_jax.models.layers.norms import NORMS, NormName
from mllm_jax.models.layers.prefix import Prefix
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.rotary import rotate
from mllm_jax.models.layers.saved import KEY, QUERY, VALUE
from mllm_jax.models.layers.virtual_tokens import KeysAndValues


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
    kernel: AttentionConfig = XLA
    batch_axes: BatchAxes = ROWS
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        mask: PackedMask | Bool[Array, "B 1 T S"] | None = None,
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
            mask: what each query may see: told by token, or all pairs; None: everything.
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
        query = nn.with_logical_constraint(query, (*self.batch_axes, "heads_activation", None))
        key = nn.with_logical_constraint(key, (*self.batch_axes, "kv_heads_activation", None))
        value = nn.with_logical_constraint(value, (*self.batch_axes, "kv_heads_activation", None))
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        if cache is not None:
            cache = write_layer(cache, layer, key, value)
            key, value = cache.keys[layer].astype(query.dtype), cache.values[layer].astype(query.dtype)
        if virtual is not None:
            key, value = virtual.before(key, value)
        query, key, value = (checkpoint_name(*each) for each in ((query, QUERY), (key, KEY), (value, VALUE)))
        read = attend(query, key, value, mask, self.scale, self.soft_cap, self.kernel, self.batch_axes)
        if prefix is not None:
            key, value = key_norm(make_key(prefix.embeddings)), make_value(prefix.embeddings)
            read = read + prefix.gate[:, None] * attend(query, key, value, prefix.mask, self.scale, self.soft_cap)
        read = materialised(read)
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
