"""BLIP-2's Querying Transformer (https://arxiv.org/abs/2301.12597): BERT's blocks over learned queries."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.layers.attention import SelfAttention
from mllm_jax.models.layers.cross_attention import CrossAttention
from mllm_jax.models.layers.feed_forward import FeedForward
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.norms import layer_norm
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.stack import StackConfig, run_stack

HIDDEN_AXES = ("images", "tokens", "embed_activation")


class QFormerConfig(Config):
    """Its values are BLIP-2's."""

    kind: Literal["q_former"] = "q_former"
    queries: int = Field(default=32, gt=0)
    """Learned vectors, and so the tokens that an image takes."""
    width: int = Field(default=768, gt=0)
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    feed_forward_width: int = Field(default=3072, gt=0)
    cross_attention_every: int = Field(default=2, gt=0)
    """The first of so many layers reads the image's features."""
    activation: ActivationName = "gelu"
    norm_epsilon: float = Field(default=1e-12, gt=0)
    stack: StackConfig = StackConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "QFormerConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.layers % self.cross_attention_every:
            raise ValueError(
                f"layers {self.layers} is not a multiple of cross_attention_every {self.cross_attention_every}"
            )
        return self

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features."""
        return self.queries


class QFormerLayer(nn.Module):
    """Norms stand after the residual sums."""

    config: QFormerConfig
    reads_features: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, queries: Float[Array, "B Q D"], features: Float[Array, "B P E"]) -> Float[Array, "B Q D"]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads = (config.heads, config.heads, config.width // config.heads)
        attention = SelfAttention(*heads, bias=True, name="attention", **formats)
        feed_forward = FeedForward(config.feed_forward_width, config.activation, name="feed_forward", **formats)
        queries = self._normed("attention_norm", queries + attention(queries)[0])
        if self.reads_features:
            cross_attention = CrossAttention(*heads, bias=True, name="cross_attention", **formats)
            queries = self._normed("cross_attention_norm", queries + cross_attention(queries, features))
        queries = self._normed("feed_forward_norm", queries + feed_forward(queries))
        return nn.with_logical_constraint(queries, HIDDEN_AXES)

    def _normed(self, name: str, queries: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        norm = layer_norm(self.config.norm_epsilon, self.dtype, self.param_dtype, name=name)
        return norm(queries)


class QFormerBlock(nn.Module):
    """`cross_attention_every` layers, of which the first reads the features: what the stack repeats."""

    config: QFormerConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self, queries: Float[Array, "B Q D"], block: Int[Array, ""], features: Float[Array, "B P E"]
    ) -> tuple[Float[Array, "B Q D"], None]:
        for place in range(self.config.cross_attention_every):
            layer = QFormerLayer(self.config, place == 0, self.dtype, self.param_dtype, name=f"layer_{place}")
            queries = layer(queries, features)
        return queries, None


class QFormerConnector(nn.Module):
    config: QFormerConfig
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
        initializer = named(nn.initializers.normal(0.02), None, "embed")
        learned = self.param("queries", initializer, (config.queries, config.width), self.param_dtype)
        queries = jnp.broadcast_to(learned.astype(self.dtype), (len(features), config.queries, config.width))
        queries = layer_norm(config.norm_epsilon, name="query_norm", **formats)(queries)
        repeated = config.layers // config.cross_attention_every
        blocks = run_stack(self, QFormerBlock, {"config": config, **formats}, config.stack, repeated, depth=repeated)
        queries = blocks(queries, features.astype(self.dtype))
        return Projection((self.width,), (None,), ("embed",), bias=True, name="projection", **formats)(queries)
