"""Neighbouring patches become one wider feature, then linear layers: Idefics3, SmolVLM, nanoVLM, InternVL, Qwen2-VL."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped
from pydantic import Field

from mllm_jax.models.connectors.features import FeatureGrid, as_grid, as_sequence
from mllm_jax.models.connectors.layers import LayersConfig, linear_layers
from mllm_jax.models.layers.norms import layer_norm


class PixelShuffleConfig(LayersConfig):
    """Idefics3, SmolVLM and nanoVLM: `depth: 1, bias: false`; InternVL: `depth: 2, norm: true`; Qwen2-VL: `depth: 2,
    patch_norm: true, inner: features`."""

    kind: Literal["pixel_shuffle"] = "pixel_shuffle"
    factor: int = Field(default=2, ge=1)
    """Side of the square of patches that become one feature; it divides the encoder's rows and columns of patches."""
    norm: bool = False
    """LayerNorm of the widened features, before the linear layers."""
    patch_norm: bool = False
    """LayerNorm of every patch, before it is joined with its neighbours."""
    inner: Literal["decoder", "features"] = "decoder"
    """What layers hand to each other is as wide as the decoder, or as the widened features."""
    norm_epsilon: float = Field(default=1e-5, gt=0)

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features.

        Raises:
            ValueError: the grid does not divide.
        """
        rows, columns = grid.patches_only(self.kind)
        if rows % self.factor or columns % self.factor:
            raise ValueError(
                f"connector.factor {self.factor} does not divide the encoder's {rows} x {columns} patches; choose "
                "another factor or encoder.image_size"
            )
        return rows * columns // self.factor**2


def shuffle(features: Float[Array, "B R C E"], factor: int) -> Float[Array, "B r c wide"]:
    """Squares of `factor` x `factor` features as one, row by row, the channels of a feature side by side."""
    images, rows, columns, width = features.shape
    down, across = rows // factor, columns // factor
    squares = features.reshape(images, down, factor, across, factor, width).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(images, down, across, factor * factor * width)


class PixelShuffleConnector(nn.Module):
    config: PixelShuffleConfig
    grid: FeatureGrid
    """How the features that come in lie."""
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B Q D"]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if config.patch_norm:
            features = layer_norm(config.norm_epsilon, name="patch_norm", **formats)(features)
        wide = as_sequence(shuffle(as_grid(features, self.grid), config.factor))
        if config.norm:
            wide = layer_norm(config.norm_epsilon, name="norm", **formats)(wide)
        inner_width = wide.shape[-1] if config.inner == "features" else None
        return linear_layers(config, wide, self.width, **formats, inner_width=inner_width)
