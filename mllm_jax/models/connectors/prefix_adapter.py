"""LLaMA-Adapter: learned prefixes in a language model's last layers, to which an image's features may be added.

https://arxiv.org/abs/2303.16199 (prefixes alone), https://arxiv.org/abs/2304.15010 (with a visual module).
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.layers.attention import SelfAttention
from mllm_jax.models.layers.axes import IMAGES
from mllm_jax.models.layers.feed_forward import FeedForward
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.norms import layer_norm
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.stack import StackConfig, run_stack

HIDDEN_AXES = (*IMAGES, "embed_activation")


class VisualModuleConfig(Config):
    """A transformer over learned queries and an image's features, of which the queries are kept."""

    width: int = Field(default=768, gt=0)
    layers: int = Field(default=8, gt=0)
    heads: int = Field(default=16, gt=0)
    feed_forward_width: int | None = Field(default=None, gt=0)
    """Null: four times the width."""
    norm_epsilon: float = Field(default=1e-5, gt=0)
    stack: StackConfig = StackConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "VisualModuleConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class PrefixAdapterConfig(Config):
    """Its values are LLaMA-Adapter V2's for a decoder of 32 layers."""

    kind: Literal["prefix_adapter"] = "prefix_adapter"
    length: int = Field(default=10, gt=0)
    """Learned tokens in a prefix."""
    layers: int = Field(default=31, gt=0)
    """Layers that have one: the decoder's last."""
    gate: Literal["head", "layer"] = "head"
    """One gate for every head, or one for all heads of a layer; closed at the start."""
    gate_activation: Literal["tanh", "linear"] = "tanh"
    visual: VisualModuleConfig | None = VisualModuleConfig()
    """What makes of an image as many queries as a prefix has tokens; null: images are not read (the first version's
    language adapter)."""

    def tokens(self, grid: FeatureGrid) -> int:
        """An image takes one token, which marks its place; its features go to the prefixes."""
        return 1

    def check_decoder(self, layers: int, mixture: bool) -> None:
        """Raises ValueError where a decoder of so many layers has not enough of them."""
        if self.layers > layers:
            raise ValueError(f"connector.layers is {self.layers}, but the decoder has {layers} layers only")


class VisualBlock(nn.Module):
    config: VisualModuleConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, hidden: Float[Array, "B T D"], layer: Int[Array, ""]) -> tuple[Float[Array, "B T D"], None]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = SelfAttention(
            config.heads,
            config.heads,
            config.width // config.heads,
            bias=True,
            batch_axes=IMAGES,
            name="attention",
            **formats,
        )
        width = config.feed_forward_width or 4 * config.width
        feed_forward = FeedForward(width, "gelu", name="feed_forward", **formats)
        hidden = hidden + attention(layer_norm(config.norm_epsilon, name="attention_norm", **formats)(hidden))[0]
        hidden = hidden + feed_forward(layer_norm(config.norm_epsilon, name="feed_forward_norm", **formats)(hidden))
        return nn.with_logical_constraint(hidden, HIDDEN_AXES), None


class PrefixAdapterConnector(nn.Module):
    """Makes what is added to the prefixes; the prefixes themselves stand beside the decoder's layers."""

    config: PrefixAdapterConfig
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
        length = config.length
        if config.visual is None:
            return jnp.zeros((len(features), length, self.width), self.dtype)
        return VisualModule(config.visual, length, self.width, name="visual", **formats)(features)


class VisualModule(nn.Module):
    config: VisualModuleConfig
    queries: int
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B Q D"]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        into = Projection((config.width,), ("embed",), (None,), bias=True, name="input", **formats)
        out_of = Projection((self.width,), (None,), ("embed",), bias=True, name="output", **formats)
        images = layer_norm(config.norm_epsilon, name="input_norm", **formats)(into(features))
        initializer = named(nn.initializers.normal(1.0), None, "embed")
        queries = self.param("queries", initializer, (self.queries, config.width), self.param_dtype)
        queries = jnp.broadcast_to(queries.astype(self.dtype), (len(features), self.queries, config.width))
        blocks = run_stack(self, VisualBlock, {"config": config, **formats}, config.stack, config.layers)
        hidden = blocks(jnp.concatenate([queries, images], axis=1))
        return layer_norm(config.norm_epsilon, name="output_norm", **formats)(out_of(hidden[:, : self.queries]))
