"""Convolutions around an adaptive average pool, then linear layers: Honeybee's C-Abstractor.

https://arxiv.org/abs/2312.06742; its blocks are RegNet's (https://arxiv.org/abs/2003.13678) with a LayerNorm over the
channels: 1x1, depthwise 3x3, squeeze and excitation (https://arxiv.org/abs/1709.01507), 1x1.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped
from pydantic import Field

from mllm_jax.models.connectors.features import FeatureGrid, as_grid, as_sequence
from mllm_jax.models.connectors.layers import LayersConfig, linear_layers
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.norms import layer_norm
from mllm_jax.models.layers.projection import Projection


class ConvolutionConfig(LayersConfig):
    kind: Literal["convolution"] = "convolution"
    activation: ActivationName = "silu"
    """Between two of the linear layers."""
    pooled: tuple[int, int] = (12, 12)
    """Rows and columns of features after the pool: an image takes as many tokens."""
    blocks: int = Field(default=3, ge=0)
    """Convolution blocks before the pool, and as many after it."""
    hidden_width: int = Field(default=1024, gt=0)
    """Channels of the blocks."""
    squeeze: float = Field(default=0.25, gt=0)
    """Channels inside a block's squeeze and excitation, as a share of those that enter the block."""
    norm_epsilon: float = Field(default=1e-5, gt=0)

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features.

        Raises:
            ValueError: features beside the patches.
        """
        grid.patches_only(self.kind)
        return self.pooled[0] * self.pooled[1]


def pool_weights(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """The matrix that averages `source` values to `target` of them, as torch's adaptive average pool does."""
    weights = np.zeros((target, source), np.float32)
    for index in range(target):
        first, end = index * source // target, -(-(index + 1) * source // target)
        weights[index, first:end] = 1 / (end - first)
    return weights


class ConvolutionBlock(nn.Module):
    config: ConvolutionConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B R C E"]) -> Float[Array, "B R C F"]:
        width = self.config.hidden_width
        hidden = nn.silu(self._convolution("first", features, "embed", "feed_forward"))
        depthwise = nn.Conv(
            width,
            (3, 3),
            feature_group_count=width,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=named(nn.initializers.lecun_normal(), None, None, None, "feed_forward"),
            name="depthwise",
        )
        hidden = nn.silu(self._norm("depthwise_norm", "feed_forward")(depthwise(hidden)))
        hidden = hidden * self._excitation(hidden, round(features.shape[-1] * self.config.squeeze))
        hidden = self._convolution("last", hidden, "feed_forward", "embed")
        if features.shape[-1] != width:
            features = self._convolution("shortcut", features, None, "embed")
        return nn.silu(hidden + features)

    def _convolution(
        self, name: str, features: Float[Array, "B R C E"], inputs: str | None, outputs: str
    ) -> Float[Array, "B R C F"]:
        """A 1x1 convolution with its norm."""
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        projection = Projection((self.config.hidden_width,), (inputs,), (outputs,), name=name, **formats)
        return self._norm(f"{name}_norm", outputs)(projection(features))

    def _norm(self, name: str, axis: str) -> nn.Module:
        return layer_norm(self.config.norm_epsilon, self.dtype, self.param_dtype, name=name, axis=axis)

    def _excitation(self, hidden: Float[Array, "B R C F"], squeezed: int) -> Float[Array, "B 1 1 F"]:
        """A factor a channel, from the channels' means over the image."""
        formats = {"bias": True, "dtype": self.dtype, "param_dtype": self.param_dtype}
        mean = hidden.mean(axis=(1, 2), keepdims=True)
        inner = Projection((squeezed,), ("feed_forward",), (None,), name="squeeze", **formats)(mean)
        outer = Projection(hidden.shape[-1:], (None,), ("feed_forward",), name="excite", **formats)
        return jax.nn.sigmoid(outer(nn.silu(inner)))


class ConvolutionConnector(nn.Module):
    config: ConvolutionConfig
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
        positions = named(nn.initializers.truncated_normal(0.02), None, "embed")
        table = self.param("position_embedding", positions, features.shape[1:], self.param_dtype)
        hidden = as_grid(features + table.astype(features.dtype), self.grid)
        for index in range(config.blocks):
            hidden = ConvolutionBlock(config, name=f"before_{index}", **formats)(hidden)
        down = pool_weights(self.grid.rows, config.pooled[0]).astype(hidden.dtype)
        across = pool_weights(self.grid.columns, config.pooled[1]).astype(hidden.dtype)
        hidden = jnp.einsum("yr,xc,brce->byxe", down, across, hidden)
        for index in range(config.blocks):
            hidden = ConvolutionBlock(config, name=f"after_{index}", **formats)(hidden)
        return linear_layers(config, as_sequence(hidden), self.width, **formats)
