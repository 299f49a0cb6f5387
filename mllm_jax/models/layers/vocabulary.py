"""From token ids to embeddings and from hidden states to logits."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.projection import placed

LOGIT_AXES = ("rows", "tokens", "vocabulary_activation")
EMBEDDING_AXES, OUTPUT_AXES = ("vocabulary", "embed"), ("embed", "vocabulary")


def _logits(
    hidden: Float[Array, "B T D"], kernel: Float[Array, "..."], axes: tuple[str, str], dtype: Any
) -> Float32[Array, "B T V"]:
    contracted = (((2,), (axes.index("embed"),)), ((), ()))
    operands = hidden.astype(dtype), placed(kernel.astype(dtype), axes)
    logits = jax.lax.dot_general(*operands, contracted, preferred_element_type=jnp.float32)
    return nn.with_logical_constraint(logits, LOGIT_AXES)


def without_padding(logits: Float32[Array, "B T V"], used: int) -> Float32[Array, "B T V"]:
    """Logits in which the rows that only pad the vocabulary are never chosen and have no share of a softmax."""
    return jnp.where(jnp.arange(logits.shape[-1]) < used, logits, jnp.finfo(logits.dtype).min)


class TokenEmbedding(nn.Module):
    vocab_size: int
    width: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        # Unit variance for the logits of a tied output at the start, whatever the width.
        initializer = named(nn.initializers.normal(1 / math.sqrt(self.width)), *EMBEDDING_AXES)
        self.embedding = self.param("embedding", initializer, (self.vocab_size, self.width), self.param_dtype)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """An id outside the vocabulary gives NaN, which a loss shows at once, and not another token's row."""
        return jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(self.dtype)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float32[Array, "B T V"]:
        """Logits of a model whose output projection is its embedding."""
        return _logits(hidden, self.embedding, EMBEDDING_AXES, self.dtype)


class PositionEmbedding(nn.Module):
    """A learned embedding of every position (GPT-2)."""

    positions: int
    """Longest segment in tokens."""
    offset: int
    """Rows of the table before that of position 0, which nothing reads (OPT has 2)."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Adds the positions to embeddings; a position outside the table gives NaN, which a loss shows at once."""
        initializer = named(nn.initializers.normal(0.02), "positions", "embed")
        shape = (self.offset + self.positions, embeddings.shape[-1])
        table = self.param("embedding", initializer, shape, self.param_dtype)
        rows = jnp.take(table, self.offset + positions, axis=0, mode="fill")
        return embeddings.astype(self.dtype) + rows.astype(self.dtype)


class TokenOutput(nn.Module):
    vocab_size: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float32[Array, "B T V"]:
        initializer = named(nn.initializers.normal(0.02), *OUTPUT_AXES)
        kernel = self.param("kernel", initializer, (hidden.shape[-1], self.vocab_size), self.param_dtype)
        return _logits(hidden, kernel, OUTPUT_AXES, self.dtype)
