"""Linear layers with an activation between them (LLaVA-1.5: two, GELU)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.models.layers.activations import ACTIVATIONS, ActivationName
from mllm_jax.models.layers.projection import Projection

KERNEL_AXES = (("embed",), ("feed_forward",))
"""Axis names alternate, so that consecutive layers shard as the two layers of a feed-forward do."""


class MLPConfig(Config):
    kind: Literal["mlp"] = "mlp"
    depth: int = Field(default=2, ge=2)
    """Linear layers; all but the first are square."""
    activation: ActivationName = "gelu"
    bias: bool = True

    def tokens(self, patches: int) -> int:
        """Decoder tokens made of an image's `patches` features."""
        return patches


class MLPConnector(nn.Module):
    config: MLPConfig
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B P D"]:
        hidden = features
        for index in range(self.config.depth):
            if index:
                hidden = ACTIVATIONS[self.config.activation](hidden)
            hidden = Projection(
                (self.width,),
                KERNEL_AXES[index % 2],
                KERNEL_AXES[(index + 1) % 2],
                bias=self.config.bias,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"layers_{index}",
            )(hidden)
        return hidden
