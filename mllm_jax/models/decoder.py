"""The decoder language model: LLaMA and its relatives are values of one config."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, Float32, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.layers.attention import SelfAttention
from mllm_jax.models.layers.cache import KVCache, advance, empty_cache, next_slots
from mllm_jax.models.layers.feed_forward import GatedFeedForward
from mllm_jax.models.layers.masks import cached_mask, packed_mask
from mllm_jax.models.layers.norms import rms_norm
from mllm_jax.models.layers.rotary import Llama3RotaryScaling, rotary_angles, rotary_frequencies
from mllm_jax.models.layers.stack import StackConfig, run_stack
from mllm_jax.models.layers.vocabulary import TokenEmbedding, TokenOutput

HIDDEN_AXES = ("rows", "tokens", "embed_activation")


class DecoderConfig(Config):
    """A causal transformer with RMSNorm, SwiGLU and rotary positions (LLaMA, https://arxiv.org/abs/2302.13971)."""

    vocab_size: int = Field(gt=0)
    """Rows of the token embedding."""
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    """Key and value heads; each serves heads / kv_heads query heads."""
    head_width: int = Field(gt=0)
    feed_forward_width: int = Field(gt=0)
    norm_epsilon: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: Llama3RotaryScaling | None = None
    tied_embeddings: bool = False
    """The output projection is the token embedding."""
    max_positions: int = Field(default=2048, gt=0)
    """Longest segment in tokens that the model was made for."""
    attention_bias: bool = False
    feed_forward_bias: bool = False
    stack: StackConfig = StackConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "DecoderConfig":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} is odd, but rotary positions turn pairs of dimensions")
        return self


def make_cache(config: DecoderConfig, rows: int, length: int, dtype: Any) -> KVCache:
    """An empty cache for `length` tokens in each of `rows` rows."""
    return empty_cache(config.layers, rows, length, config.kv_heads, config.head_width, dtype)


class DecoderBlock(nn.Module):
    config: DecoderConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], KVCache | None],
        layer: Int[Array, ""],
        mask: Bool[Array, "B 1 T S"],
        angles: tuple[Float[Array, "B T half"], Float[Array, "B T half"]],
    ) -> tuple[tuple[Float[Array, "B T D"], KVCache | None], None]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden, cache = carry
        attention = SelfAttention(
            config.heads, config.kv_heads, config.head_width, config.attention_bias, name="attention", **formats
        )
        feed_forward = GatedFeedForward(
            config.feed_forward_width, config.feed_forward_bias, name="feed_forward", **formats
        )
        normed = rms_norm(config.norm_epsilon, name="attention_norm", **formats)(hidden)
        attended, cache = attention(normed, mask, angles, cache, layer)
        hidden = hidden + attended
        hidden = hidden + feed_forward(rms_norm(config.norm_epsilon, name="feed_forward_norm", **formats)(hidden))
        return (nn.with_logical_constraint(hidden, HIDDEN_AXES), cache), None


class Decoder(nn.Module):
    config: DecoderConfig
    dtype: Any = jnp.float32
    """Compute format."""
    param_dtype: Any = jnp.float32

    def setup(self):
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.token_embedding = TokenEmbedding(self.config.vocab_size, self.config.width, **formats)
        if not self.config.tied_embeddings:
            self.output = TokenOutput(self.config.vocab_size, **formats)

    @jaxtyped(typechecker=beartype)
    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.token_embedding(tokens)

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm.

        Without a cache the rows are packed: tokens see the earlier tokens of their own segment. With a cache a row is
        one segment that goes on after what the cache holds; `segment_ids` then only tells tokens from the padding
        (0) at their right end, and the cache returned holds the new tokens too.
        """
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        frequencies = rotary_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
        angles = rotary_angles(positions, frequencies)
        if cache is None:
            mask = packed_mask(segment_ids)
        else:
            mask = cached_mask(next_slots(cache, embeddings.shape[1]), cache.capacity)
        hidden = nn.with_logical_constraint(embeddings.astype(self.dtype), HIDDEN_AXES)
        blocks = run_stack(self, DecoderBlock, {"config": config, **formats}, config.stack, config.layers)
        hidden, cache = blocks((hidden, cache), mask, angles)
        hidden = rms_norm(config.norm_epsilon, name="final_norm", **formats)(hidden)
        return hidden, None if cache is None else advance(cache, segment_ids)

    @jaxtyped(typechecker=beartype)
    def logits(self, hidden: Float[Array, "B T D"]) -> Float32[Array, "B T V"]:
        return self.token_embedding.logits(hidden) if self.config.tied_embeddings else self.output(hidden)

    def initialise(self) -> Float32[Array, "1 1 V"]:
        """Runs every part once, so that `init(key, method="initialise")` makes every parameter."""
        zeros = jnp.zeros((1, 1), jnp.int32)
        return self.logits(self(self.embed(zeros), zeros, zeros)[0])
