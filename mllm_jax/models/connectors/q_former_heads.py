"""What BLIP-2 puts on a Q-Former to train it on pairs of an image and its text (https://arxiv.org/abs/2301.12597)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Float32, Int, jaxtyped

from mllm_jax.models.connectors.q_former import QFormer, QFormerConfig, causal_mask, open_mask
from mllm_jax.models.layers.activations import ACTIVATIONS
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.norms import layer_norm, unit
from mllm_jax.models.layers.projection import Projection

PAIR_AXES = ("images", None, None)


class CaptionHead(nn.Module):
    """From the states of a text to what is compared with the word embeddings, as in BERT."""

    config: QFormerConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = Projection((self.config.width,), ("embed",), (None,), bias=True, name="dense", **formats)
        norm = layer_norm(self.config.norm_epsilon, name="norm", **formats)
        return norm(ACTIVATIONS[self.config.activation](dense(hidden)))


class PairQFormer(nn.Module):
    """A Q-Former that compares images with texts, tells whether they belong together, and writes captions.

    The Q-Former is called `connector`, as it is in a `Multimodal`.
    """

    config: QFormerConfig
    """With text."""
    width: int
    """Of the space in which images and texts are compared."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.connector = QFormer(self.config, **formats)
        self.image_projection = Projection((self.width,), ("embed",), (None,), bias=True, **formats)
        self.text_projection = Projection((self.width,), ("embed",), (None,), bias=True, **formats)
        self.matching = Projection((2,), ("embed",), (None,), bias=True, **formats)
        self.caption_head = CaptionHead(self.config, **formats)
        assert self.config.text is not None
        zeros = named(nn.initializers.zeros, "vocabulary")
        self.caption_bias = self.param("caption_bias", zeros, (self.config.text.vocab_size,), self.param_dtype)

    @jaxtyped(typechecker=beartype)
    def compared_and_captioned(
        self, features: Float[Array, "B P D"], text: Int[Array, "B S"], begin: int
    ) -> tuple[Float32[Array, "B Q E"], Float32[Array, "B S V"]]:
        """What is compared of every image, of length 1 a query; and the logits of the token that follows each of the
        text's, in whose first place stands `begin`.

        One pass makes both: queries see no text, so that they are what they are without it.
        """
        text = text.at[:, 0].set(begin)
        hidden = self.connector(features, text, causal_mask(self.config.queries, text))
        queries, written = hidden[:, : self.config.queries], hidden[:, self.config.queries :]
        logits = self.connector.text_logits(self.caption_head(written)) + self.caption_bias.astype(jnp.float32)
        return unit(self.image_projection(queries)), logits

    @jaxtyped(typechecker=beartype)
    def compared_texts(self, text: Int[Array, "B S"]) -> Float32[Array, "B E"]:
        """What is compared of every text, of length 1: made of its first token, which sees the whole text."""
        hidden = self.connector(None, text, open_mask(0, text))
        return unit(self.text_projection(hidden[:, 0]))

    @jaxtyped(typechecker=beartype)
    def matched(self, features: Float[Array, "B P D"], text: Int[Array, "B S"]) -> Float32[Array, "B 2"]:
        """Logits of whether image and text do not belong together, and whether they do."""
        hidden = self.connector(features, text, open_mask(self.config.queries, text))
        return jnp.mean(self.matching(hidden[:, : self.config.queries]).astype(jnp.float32), axis=1)

    def initialise(self, features: Float[Array, "B P D"], text: Int[Array, "B S"]) -> None:
        """Runs every part once, so that `init(key, features, text, method="initialise")` makes every parameter."""
        self.compared_and_captioned(features, text, 0)
        self.compared_texts(text)
        self.matched(features, text)
