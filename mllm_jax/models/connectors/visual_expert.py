"""CogVLM's visual expert (https://arxiv.org/abs/2311.03079): image tokens have weights of their own in every layer."""

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.connectors.mlp import MLPConfig, MLPConnector


class VisualExpertConfig(Config):
    """A connector to the embeddings, and a second set of attention and feed-forward weights in every decoder layer,
    which image tokens take in the place of the first. They begin as copies of the first, when that is read from a
    folder."""

    kind: Literal["visual_expert"] = "visual_expert"
    projector: Annotated[LinearConfig | MLPConfig, Field(discriminator="kind")] = MLPConfig()
    """From the encoder's features to the embeddings of the image's tokens."""

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features."""
        return self.projector.tokens(grid)

    def check_decoder(self, layers: int, mixture: bool) -> None:
        """Raises ValueError for a decoder that is a mixture of experts."""
        if mixture:
            raise ValueError("a visual expert does not go with a decoder that is a mixture of experts")


def copied_from(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The parameter whose values one of the expert's begins with, both by their keys; None: `path` is not of one."""
    source = tuple(key.removeprefix("image_") for key in path)
    return source if source != path else None


class VisualExpertConnector(nn.Module):
    config: VisualExpertConfig
    grid: FeatureGrid
    """How the features that come in lie."""
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B P D"]:
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return MLPConnector(self.config.projector, self.grid, self.width, name="projector", **formats)(features)
