"""Attention from one sequence to another."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, jaxtyped

from mllm_jax.models.layers.attention_kernels import attend
from mllm_jax.models.layers.axes import ROWS, BatchAxes
from mllm_jax.models.layers.norms import NORMS, NormName
from mllm_jax.models.layers.projection import Projection


class CrossAttention(nn.Module):
    """Queries from `hidden`, keys and values from `context`; the two may differ in width."""

    heads: int
    kv_heads: int
    head_width: int
    bias: bool = False
    head_norm: NormName | None = None
    """Normalise every head of queries and keys."""
    norm_epsilon: float = 1e-5
    batch_axes: BatchAxes = ROWS
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
        context: Float[Array, "B S E"],
        mask: Bool[Array, "B 1 T S"] | None = None,
    ) -> Float[Array, "B T D"]:
        """What every query that `mask` closes to the whole context gets is not defined: the caller leaves it out."""
        query = self.project("query", self.heads, "heads")(hidden)
        key = self.project("key", self.kv_heads, "kv_heads")(context)
        value = self.project("value", self.kv_heads, "kv_heads")(context)
        query = self._normed("query_norm", query)
        key = self._normed("key_norm", key)
        query = nn.with_logical_constraint(query, (*self.batch_axes, "heads_activation", None))
        key = nn.with_logical_constraint(key, (*self.batch_axes, "kv_heads_activation", None))
        value = nn.with_logical_constraint(value, (*self.batch_axes, "kv_heads_activation", None))
        output = Projection(
            shape=(hidden.shape[-1],),
            input_axes=("heads", "head_width"),
            output_axes=("embed",),
            bias=self.bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="output",
        )
        return output(attend(query, key, value, mask))

    def _normed(self, name: Literal["query_norm", "key_norm"], heads: Float[Array, "B T H C"]) -> Array:
        if self.head_norm is None:
            return heads
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return NORMS[self.head_norm](self.norm_epsilon, axis="head_width", name=name, **formats)(heads)
