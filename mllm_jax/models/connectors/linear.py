"""One linear layer from encoder features to decoder embeddings (LLaVA 1.0)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

from data_pipelines.config_class import Config
from mllm_jax.models.layers.projection import Projection


class LinearConfig(Config):
    kind: Literal["linear"] = "linear"
    bias: bool = True

    def tokens(self, patches: int) -> int:
        """Decoder tokens made of an image's `patches` features."""
        return patches


class LinearConnector(nn.Module):
    config: LinearConfig
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B P D"]:
        return Projection(
            (self.width,),
            (None,),
            ("embed",),
            bias=self.config.bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="layers_0",
        )(features)
