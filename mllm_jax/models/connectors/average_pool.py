"""Neighbouring patches are averaged, then linear layers."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped
from pydantic import Field

from mllm_jax.models.connectors.features import FeatureGrid, as_grid, as_sequence
from mllm_jax.models.connectors.layers import LayersConfig, linear_layers


class AveragePoolConfig(LayersConfig):
    kind: Literal["average_pool"] = "average_pool"
    kernel: int = Field(default=2, gt=0)
    """Side in patches of the square that is averaged."""
    stride: int | None = Field(default=None, gt=0)
    """Patches from one square to the next; null: `kernel`. What is left over at the bottom and the right is cut off."""

    def pooled(self, grid: FeatureGrid) -> tuple[int, int]:
        """Rows and columns of squares.

        Raises:
            ValueError: the grid holds none.
        """
        rows, columns = grid.patches_only(self.kind)
        if min(rows, columns) < self.kernel:
            raise ValueError(f"connector.kernel {self.kernel} is larger than the encoder's {rows} x {columns} patches")
        stride = self.stride or self.kernel
        return (rows - self.kernel) // stride + 1, (columns - self.kernel) // stride + 1

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features."""
        rows, columns = self.pooled(grid)
        return rows * columns


class AveragePoolConnector(nn.Module):
    config: AveragePoolConfig
    grid: FeatureGrid
    """How the features that come in lie."""
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B Q D"]:
        kernel, stride = self.config.kernel, self.config.stride or self.config.kernel
        pooled = nn.avg_pool(as_grid(features, self.grid), (kernel, kernel), (stride, stride))
        return linear_layers(self.config, as_sequence(pooled), self.width, self.dtype, self.param_dtype)
