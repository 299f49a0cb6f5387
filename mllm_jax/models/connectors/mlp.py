"""Linear layers from encoder features to decoder embeddings (LLaVA-1.5: two, GELU)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.connectors.layers import LayersConfig, linear_layers


class MLPConfig(LayersConfig):
    kind: Literal["mlp"] = "mlp"

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features."""
        return grid.total


class MLPConnector(nn.Module):
    config: LayersConfig
    grid: FeatureGrid
    """How the features that come in lie."""
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B P D"]:
        return linear_layers(self.config, features, self.width, self.dtype, self.param_dtype)
