"""Several vision encoders side by side, their features concatenated (Prismatic, https://arxiv.org/abs/2402.07865)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, UInt8, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.vit import ViT, ViTConfig


class FusedConfig(Config):
    """Encoders that see the same images and cut them into the same grid of patches."""

    parts: tuple[ViTConfig, ...] = Field(min_length=2)
    """Each normalises pixels for itself; a feature is theirs at the same patch, in this order."""

    @model_validator(mode="after")
    def _alike(self) -> "FusedConfig":
        first = self.parts[0]
        for index, part in enumerate(self.parts[1:], start=1):
            if (part.image_size, part.grid) != (first.image_size, first.grid):
                raise ValueError(
                    f"parts.{index} has {part.grid} patches of images of {part.image_size} pixels, but parts.0 has "
                    f"{first.grid} of {first.image_size}; give both the same image_size and patch_size"
                )
        for index, part in enumerate(self.parts):
            if part.features.keep_class_token:
                raise ValueError(f"parts.{index}.features.keep_class_token is true, but only patches can be fused")
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.parts[0].image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return self.parts[0].grid

    @property
    def feature_grid(self) -> FeatureGrid:
        """How the features of one image lie."""
        return FeatureGrid(*self.grid)

    @property
    def patches(self) -> int:
        """Features that are handed on for one image."""
        return self.feature_grid.total

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return sum(part.width for part in self.parts)

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Mean of red, green, blue that the first part takes off: the colour beside padded images."""
        return self.parts[0].pixel_mean


class FusedEncoder(nn.Module):
    config: FusedConfig
    dtype: Any = jnp.float32
    """Compute format."""
    param_dtype: Any = jnp.float32

    def setup(self):
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.parts = [ViT(part, **formats) for part in self.config.parts]

    @jaxtyped(typechecker=beartype)
    def __call__(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        """Raw pixels to features, `P = config.patches` and `D = config.width`."""
        return jnp.concatenate([part(images) for part in self.parts], axis=-1)

    def initialise(self) -> Float[Array, "1 P D"]:
        """Runs every part once, so that `init(key, method="initialise")` makes every parameter."""
        return self(jnp.zeros((1, *self.config.image_size, 3), jnp.uint8))


EncoderConfig = ViTConfig | FusedConfig

ENCODER_MODULES: dict[type, type[nn.Module]] = {ViTConfig: ViT, FusedConfig: FusedEncoder}


def encoder_parts(config: EncoderConfig) -> dict[tuple[str, ...], ViTConfig]:
    """The vision transformers of an encoder, each with the path to its parameters below the encoder's."""
    if isinstance(config, ViTConfig):
        return {(): config}
    return {(f"parts_{index}",): part for index, part in enumerate(config.parts)}


def make_encoder(config: EncoderConfig, dtype: Any, param_dtype: Any) -> nn.Module:
    """The module of an encoder's config."""
    return ENCODER_MODULES[type(config)](config, dtype=dtype, param_dtype=param_dtype)
