"""Gated cross-attention: blocks between a language model's layers that read images (Flamingo, Idefics).

Flamingo: https://arxiv.org/abs/2204.14198. The gates are closed at the start, so that the model begins as the language
model that it was made of.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.connectors.perceiver import PerceiverConfig, PerceiverConnector
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.layers.cross_attention import CrossAttention
from mllm_jax.models.layers.feed_forward import FEED_FORWARDS, FeedForwardName
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.media import Media, latest_mask
from mllm_jax.models.layers.norms import NORMS, NormName

HIDDEN_AXES = ("rows", "tokens", "embed_activation")


class GatedCrossAttentionConfig(Config):
    """Its values are OpenFlamingo's."""

    kind: Literal["gated_cross_attention"] = "gated_cross_attention"
    resampler: PerceiverConfig | None = PerceiverConfig(projection=False)
    """What makes a few features of an image's many; null: the blocks read all of them."""
    every: int = Field(default=4, gt=0)
    """Layers of the decoder from one block to the next."""
    first: int = Field(default=0, ge=0)
    """The layer before which the first block stands; in OpenFlamingo every - 1, in Idefics 0."""
    heads: int = Field(default=8, gt=0)
    head_width: int = Field(default=64, gt=0)
    head_norm: NormName | None = None
    """Normalise every head of queries and keys."""
    feed_forward: FeedForwardName = "plain"
    feed_forward_width: int | None = Field(default=None, gt=0)
    """Null: four times the decoder's width."""
    activation: ActivationName = "gelu"
    norm: NormName = "layer"
    norm_epsilon: float = Field(default=1e-5, gt=0)
    gate: Literal["scalar", "vector"] = "scalar"
    """One gate for a branch, or one for every channel of it."""

    @model_validator(mode="after")
    def _consistent(self) -> "GatedCrossAttentionConfig":
        if self.resampler is not None and self.resampler.projection:
            raise ValueError("the blocks read features of the encoder's width: resampler.projection must be false")
        return self

    def tokens(self, grid: FeatureGrid) -> int:
        """An image takes one token, which marks its place; its features go to the blocks."""
        return 1

    def check_decoder(self, layers: int, mixture: bool) -> None:
        """Raises ValueError where the blocks do not fit a decoder of so many layers, or a mixture of experts."""
        if self.first >= layers:
            raise ValueError(f"connector.first is {self.first}, but the decoder has {layers} layers, counted from 0")
        if mixture:
            raise ValueError("gated cross-attention does not go with a decoder that is a mixture of experts")


class GatedCrossAttentionConnector(nn.Module):
    """Makes what the blocks read."""

    config: GatedCrossAttentionConfig
    grid: FeatureGrid
    """How the features that come in lie."""
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P E"]) -> Float[Array, "B Q E"]:
        if self.config.resampler is None:
            return features
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return PerceiverConnector(
            self.config.resampler, self.grid, width=features.shape[-1], name="resampler", **formats
        )(features)


class GatedCrossAttentionBlock(nn.Module):
    config: GatedCrossAttentionConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, carry: tuple, block: Int[Array, ""], media: Media) -> tuple[tuple, None]:
        """The carry is that of the decoder's layers: hidden states first, and what they alone know of after them."""
        hidden, *others = carry
        attended = self._attended(self._norm("attention_norm")(hidden), media)
        hidden = hidden + self._gate("attention_gate", hidden) * attended
        width = self.config.feed_forward_width or 4 * hidden.shape[-1]
        feed_forward = FEED_FORWARDS[self.config.feed_forward](
            width, activation=self.config.activation, bias=False, name="feed_forward", **self._formats
        )
        processed = feed_forward(self._norm("feed_forward_norm")(hidden))
        hidden = hidden + self._gate("feed_forward_gate", hidden) * processed
        return (nn.with_logical_constraint(hidden, HIDDEN_AXES), *others), None

    @property
    def _formats(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def _norm(self, name: str) -> nn.Module:
        return NORMS[self.config.norm](self.config.norm_epsilon, name=name, **self._formats)

    def _gate(self, name: str, hidden: Float[Array, "B T D"]) -> Array:
        vector = self.config.gate == "vector"
        zeros = named(nn.initializers.zeros, "embed" if vector else None)
        gate = self.param(name, zeros, (hidden.shape[-1] if vector else 1,), self.param_dtype)
        return jnp.tanh(gate).astype(self.dtype)

    def _attended(self, hidden: Float[Array, "B T D"], media: Media) -> Float[Array, "B T D"]:
        """Zeros for a token before any image."""
        config = self.config
        rows, slots, length, width = media.features.shape
        if not slots and not self.is_initializing():
            return jnp.zeros_like(hidden)
        attention = CrossAttention(
            config.heads,
            config.heads,
            config.head_width,
            head_norm=config.head_norm,
            norm_epsilon=config.norm_epsilon,
            name="attention",
            **self._formats,
        )
        features = media.features.reshape(rows, slots * length, width)
        attended = attention(hidden, features, latest_mask(media.latest, slots, length))
        return jnp.where(media.latest[..., None] < 0, 0, attended)
