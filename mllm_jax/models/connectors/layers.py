"""Linear layers with an activation between them: a connector by themselves, and the end of most others."""

from typing import Any

from jaxtyping import Array, Float
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.models.layers.activations import ACTIVATIONS, ActivationName
from mllm_jax.models.layers.projection import Projection

KERNEL_AXES = (("embed",), ("feed_forward",))
"""Axis names alternate, so that consecutive layers shard as the two layers of a feed-forward do."""


class LayersConfig(Config):
    depth: int = Field(default=2, ge=1)
    """Linear layers; all but the first are square."""
    activation: ActivationName = "gelu"
    """Between two layers."""
    bias: bool = True


def linear_layers(
    config: LayersConfig,
    features: Float[Array, "B P E"],
    width: int,
    dtype: Any,
    param_dtype: Any,
    inner_width: int | None = None,
) -> Float[Array, "B P D"]:
    """Maps every feature to `width`; must be called in a compact method, makes `layers_0`, `layers_1`, ...

    What layers hand to each other is `inner_width` wide, or `width` where that is None.
    """
    hidden = features
    for index in range(config.depth):
        if index:
            hidden = ACTIVATIONS[config.activation](hidden)
        hidden = Projection(
            (width if index == config.depth - 1 else inner_width or width,),
            KERNEL_AXES[index % 2],
            KERNEL_AXES[(index + 1) % 2],
            bias=config.bias,
            dtype=dtype,
            param_dtype=param_dtype,
            name=f"layers_{index}",
        )(hidden)
    return hidden
