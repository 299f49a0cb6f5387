"""BLIP-2's Querying Transformer (https://arxiv.org/abs/2301.12597): BERT's blocks over learned queries and text.

Queries and text attend to one another as a mask says, and only queries read the image. With a mask that is open both
ways the text is an instruction (InstructBLIP, https://arxiv.org/abs/2305.06500).
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, Float32, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.layers.attention import SelfAttention
from mllm_jax.models.layers.axes import IMAGES
from mllm_jax.models.layers.cross_attention import CrossAttention
from mllm_jax.models.layers.feed_forward import FeedForward
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.norms import layer_norm
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.stack import StackConfig, run_stack
from mllm_jax.models.layers.vocabulary import PositionEmbedding, TokenEmbedding

HIDDEN_AXES = (*IMAGES, "embed_activation")


class QFormerTextConfig(Config):
    """The text side of a Q-Former; its values are InstructBLIP's."""

    vocab_size: int = Field(default=30523, gt=0)
    """Rows of the word embedding: BERT's, and one for the token that begins a decoded text."""
    max_positions: int = Field(default=512, gt=0)
    """Longest text in tokens that has positions."""
    instruction_tokens: int = Field(default=128, gt=1)
    """Longest instruction in tokens, the first and the last special token included; of a longer one the end is kept."""

    @model_validator(mode="after")
    def _consistent(self) -> "QFormerTextConfig":
        if self.instruction_tokens > self.max_positions:
            raise ValueError(
                f"instruction_tokens {self.instruction_tokens} is more than max_positions {self.max_positions}"
            )
        return self


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
    text: QFormerTextConfig | None = None
    """Reads each image's instruction beside the queries; null: queries alone."""
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
    def __call__(
        self, hidden: Float[Array, "B T D"], features: Float[Array, "B P E"] | None, mask: Bool[Array, "B 1 T T"] | None
    ) -> Float[Array, "B T D"]:
        """`hidden` is the queries, then the text, `T = Q + S`; without features the text alone."""
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads = (config.heads, config.heads, config.width // config.heads)
        attention = SelfAttention(*heads, bias=True, batch_axes=IMAGES, name="attention", **formats)
        hidden = self._normed("attention_norm", hidden + attention(hidden, mask)[0])
        if features is None:
            return nn.with_logical_constraint(self._fed_forward("text_feed_forward", hidden), HIDDEN_AXES)
        queries, text = hidden[:, : config.queries], hidden[:, config.queries :]
        if self.reads_features:
            cross_attention = CrossAttention(*heads, bias=True, batch_axes=IMAGES, name="cross_attention", **formats)
            queries = self._normed("cross_attention_norm", queries + cross_attention(queries, features))
        hidden = self._fed_forward("feed_forward", queries)
        if config.text is not None:
            hidden = jnp.concatenate([hidden, self._fed_forward("text_feed_forward", text)], axis=1)
        return nn.with_logical_constraint(hidden, HIDDEN_AXES)

    def _fed_forward(self, name: str, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        feed_forward = FeedForward(self.config.feed_forward_width, self.config.activation, name=name, **formats)
        return self._normed(f"{name}_norm", hidden + feed_forward(hidden))

    def _normed(self, name: str, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        norm = layer_norm(self.config.norm_epsilon, self.dtype, self.param_dtype, name=name)
        return norm(hidden)


class QFormerBlock(nn.Module):
    """`cross_attention_every` layers, of which the first reads the features: what the stack repeats."""

    config: QFormerConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        block: Int[Array, ""],
        features: Float[Array, "B P E"] | None,
        mask: Bool[Array, "B 1 T T"] | None,
    ) -> tuple[Float[Array, "B T D"], None]:
        for place in range(self.config.cross_attention_every):
            layer = QFormerLayer(self.config, place == 0, self.dtype, self.param_dtype, name=f"layer_{place}")
            hidden = layer(hidden, features, mask)
        return hidden, None


class QFormer(nn.Module):
    """The queries and a text together, whatever they are trained for."""

    config: QFormerConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        initializer = named(nn.initializers.normal(0.02), None, "embed")
        self.queries = self.param("queries", initializer, (config.queries, config.width), self.param_dtype)
        self.query_norm = layer_norm(config.norm_epsilon, **formats)
        if config.text is not None:
            self.token_embedding = TokenEmbedding(config.text.vocab_size, config.width, **formats)
            self.position_embedding = PositionEmbedding(config.text.max_positions, 0, **formats)

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        features: Float[Array, "B P E"] | None,
        text: Int[Array, "B S"] | None = None,
        mask: Bool[Array, "B 1 T T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The states of the queries, then those of the text.

        Args:
            features: of an image; None: there is none, and the text stands alone.
            text: token ids, negative where there is none; None where the config has no text.
            mask: what each of queries and text may see of both; None: everything.
        """
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = [] if features is None else [self._learned(len(features))]
        if config.text is not None:
            if text is None:
                raise ValueError("a Q-Former with text was given none: hand it the batch's instructions")
            hidden.append(self._embedded(text))
        repeated = config.layers // config.cross_attention_every
        blocks = run_stack(self, QFormerBlock, {"config": config, **formats}, config.stack, repeated, depth=repeated)
        features = None if features is None else features.astype(self.dtype)
        return blocks(self.query_norm(jnp.concatenate(hidden, axis=1)), features, mask)

    def text_logits(self, hidden: Float[Array, "B S D"]) -> Float32[Array, "B S V"]:
        """Likenesses of states to the word embeddings."""
        return self.token_embedding.logits(hidden)

    def _learned(self, count: int) -> Float[Array, "B Q D"]:
        return jnp.broadcast_to(self.queries.astype(self.dtype), (count, *self.queries.shape))

    def _embedded(self, text: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        places = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
        return self.position_embedding(self.token_embedding(jnp.maximum(text, 0)), places)


def open_mask(queries: int, text: Int[Array, "B S"]) -> Bool[Array, "B 1 T T"]:
    """Everyone sees the queries and the text there is; nothing reads what comes of the places without text."""
    keys = jnp.concatenate([jnp.ones((len(text), queries), bool), text >= 0], axis=1)
    return jnp.broadcast_to(keys[:, None, None], (len(text), 1, keys.shape[1], keys.shape[1]))


def causal_mask(queries: int, text: Int[Array, "B S"]) -> Bool[Array, "B 1 T T"]:
    """Queries see queries alone; a text sees the queries and what of it stands before."""
    rows, length = text.shape
    keys, whole = jnp.concatenate([jnp.ones((rows, queries), bool), text >= 0], axis=1), queries + length
    seen = jnp.tril(jnp.ones((whole, whole), bool)) | (jnp.arange(whole) < queries)
    return (seen & keys[:, None])[:, None]


class QFormerConnector(nn.Module):
    """What the queries read of an image (and its instruction), in the decoder's width."""

    config: QFormerConfig
    grid: FeatureGrid
    """How the features that come in lie."""
    width: int
    """Width of the decoder."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.q_former = QFormer(self.config, **formats)
        nn.share_scope(self, self.q_former)
        self.projection = Projection((self.width,), (None,), ("embed",), bias=True, **formats)

    @jaxtyped(typechecker=beartype)
    def __call__(
        self, features: Float[Array, "B P E"], instructions: Int[Array, "B S"] | None = None
    ) -> Float[Array, "B Q D"]:
        mask = None if instructions is None else open_mask(self.config.queries, instructions)
        hidden = self.q_former(features, instructions, mask)
        return self.projection(hidden[:, : self.config.queries])
