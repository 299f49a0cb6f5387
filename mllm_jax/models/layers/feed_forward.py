"""The two feed-forward layers: plain (ViT, GPT-2), and gated (LLaMA)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

from mllm_jax.models.layers.activations import ACTIVATIONS, ActivationName
from mllm_jax.models.layers.axes import ROWS, BatchAxes
from mllm_jax.models.layers.materialised import materialised
from mllm_jax.models.layers.projection import Projection


class FeedForward(nn.Module):
    """`down(activation(up(x)))`."""

    feed_forward_width: int
    activation: ActivationName
    bias: bool = True
    output_width: int | None = None
    """None: as wide as what comes in."""
    batch_axes: BatchAxes = ROWS
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        formats = {"bias": self.bias, "dtype": self.dtype, "param_dtype": self.param_dtype}
        up = Projection((self.feed_forward_width,), ("embed",), ("feed_forward",), name="up", **formats)
        width = self.output_width or hidden.shape[-1]
        down = Projection((width,), ("feed_forward",), ("embed",), name="down", **formats)
        return down(materialised(ACTIVATIONS[self.activation](materialised(up(hidden)))))


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) * up(x))`; SwiGLU with SiLU (https://arxiv.org/abs/2002.05202)."""

    feed_forward_width: int
    bias: bool = False
    activation: ActivationName = "silu"
    output_width: int | None = None
    """None: as wide as what comes in."""
    batch_axes: BatchAxes = ROWS
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        formats = {"bias": self.bias, "dtype": self.dtype, "param_dtype": self.param_dtype}
        gate = Projection((self.feed_forward_width,), ("embed",), ("feed_forward",), name="gate", **formats)
        up = Projection((self.feed_forward_width,), ("embed",), ("feed_forward",), name="up", **formats)
        width = self.output_width or hidden.shape[-1]
        down = Projection((width,), ("feed_forward",), ("embed",), name="down", **formats)
        gated, raised = materialised(gate(hidden)), materialised(up(hidden))
        inner = nn.with_logical_constraint(
            ACTIVATIONS[self.activation](gated) * raised, (*self.batch_axes, "feed_forward_activation")
        )
        return down(materialised(inner))


FeedForwardName = Literal["gated", "plain"]

FEED_FORWARDS: dict[FeedForwardName, type[FeedForward] | type[GatedFeedForward]] = {
    "gated": GatedFeedForward,
    "plain": FeedForward,
}
