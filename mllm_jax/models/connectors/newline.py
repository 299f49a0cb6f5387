"""A connector for tiled images: any connector, and the learned embedding that ends a row of tiles (LLaVA-NeXT)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped

from mllm_jax.models.connectors.choice import ConnectorConfig, make_connector
from mllm_jax.models.connectors.features import FeatureGrid


class NewlineConnector(nn.Module):
    """The connector's parameters stand where they stand without tiles, and `newline` beside them."""

    config: ConnectorConfig
    grid: FeatureGrid
    """How the features of a tile lie."""
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        self.connector = make_connector(self.config, self.grid, self.width, self.dtype, self.param_dtype)
        nn.share_scope(self, self.connector)
        normal = nn.with_logical_partitioning(nn.initializers.normal(self.width**-0.5), ("embed",))
        self.newline = self.param("newline", normal, (self.width,), self.param_dtype)

    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"], *instructions: Int[Array, "B S"]) -> Float[Array, "B Q D"]:
        return self.connector(features, *instructions)
