"""Learned latents that read an image's features: Flamingo's resampler (https://arxiv.org/abs/2204.14198)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.layers.axes import IMAGES
from mllm_jax.models.layers.cross_attention import CrossAttention
from mllm_jax.models.layers.feed_forward import FEED_FORWARDS, FeedForwardName
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.norms import NORMS, NormName
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.stack import StackConfig, run_stack

HIDDEN_AXES = (*IMAGES, "embed_activation")


class MediaProjectionConfig(Config):
    """A feed-forward layer without biases that brings features to the width of the blocks."""

    feed_forward: FeedForwardName = "gated"
    feed_forward_width: int = Field(gt=0)
    activation: ActivationName = "silu"


class PerceiverConfig(Config):
    """A stack of blocks, of which the latents are read; its values are Flamingo's."""

    kind: Literal["perceiver"] = "perceiver"
    latents: int = Field(default=64, gt=0)
    """Learned vectors, and so the tokens that an image takes."""
    layers: int = Field(default=6, gt=0)
    heads: int = Field(default=8, gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    """Key and value heads; null: as many as heads."""
    head_width: int = Field(default=64, gt=0)
    head_norm: NormName | None = None
    """Normalise every head of queries and keys (Idefics)."""
    feed_forward_width: int | None = Field(default=None, gt=0)
    """Null: four times the width."""
    feed_forward: FeedForwardName = "plain"
    activation: ActivationName = "gelu"
    norm: NormName = "layer"
    norm_epsilon: float = Field(default=1e-5, gt=0)
    media_projection: MediaProjectionConfig | None = None
    """Brings the features to the decoder's width before the blocks, which are as wide then (Idefics2); null: the blocks
    are as wide as the features that come in."""
    projection: bool = True
    """Map the latents to the decoder's width by a linear layer; without it the two widths must be equal."""
    stack: StackConfig = StackConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "PerceiverConfig":
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features."""
        return self.latents


class PerceiverBlock(nn.Module):
    config: PerceiverConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self, latents: Float[Array, "B Q E"], layer: Int[Array, ""], features: Float[Array, "B P E"]
    ) -> tuple[Float[Array, "B Q E"], None]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = CrossAttention(
            config.heads,
            config.kv_heads or config.heads,
            config.head_width,
            head_norm=config.head_norm,
            norm_epsilon=config.norm_epsilon,
            batch_axes=IMAGES,
            name="attention",
            **formats,
        )
        media = self._norm("media_norm")(features)
        queries = self._norm("latents_norm")(latents)
        latents = latents + attention(queries, jnp.concatenate([media, queries], axis=1))
        normed = self._norm("feed_forward_norm")(latents)
        latents = latents + self._feed_forward(4 * latents.shape[-1])(normed)
        return nn.with_logical_constraint(latents, HIDDEN_AXES), None

    def _norm(self, name: str) -> nn.Module:
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return NORMS[self.config.norm](self.config.norm_epsilon, name=name, **formats)

    def _feed_forward(self, default_width: int) -> nn.Module:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return FEED_FORWARDS[config.feed_forward](
            config.feed_forward_width or default_width,
            activation=config.activation,
            bias=False,
            batch_axes=IMAGES,
            name="feed_forward",
            **formats,
        )


class PerceiverConnector(nn.Module):
    config: PerceiverConfig
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
        features = self._projected(features.astype(self.dtype))
        images, _, width = features.shape
        initializer = named(nn.initializers.normal(1.0), None, "embed")
        learned = self.param("latents", initializer, (config.latents, width), self.param_dtype)
        latents = jnp.broadcast_to(learned.astype(self.dtype), (images, config.latents, width))
        blocks = run_stack(self, PerceiverBlock, {"config": config, **formats}, config.stack, config.layers)
        latents = blocks(latents, features)
        latents = NORMS[config.norm](config.norm_epsilon, name="final_norm", **formats)(latents)
        if config.projection:
            return Projection((self.width,), (None,), ("embed",), bias=True, name="projection", **formats)(latents)
        if width != self.width:
            raise ValueError(
                f"connector.projection is false, but features are {width} wide and the decoder {self.width}"
            )
        return latents

    def _projected(self, features: Float[Array, "B P E"]) -> Float[Array, "B P F"]:
        config = self.config.media_projection
        if config is None:
            return features
        return FEED_FORWARDS[config.feed_forward](
            config.feed_forward_width,
            activation=config.activation,
            bias=False,
            batch_axes=IMAGES,
            output_width=self.width,
            name="media_projection",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )(features)
