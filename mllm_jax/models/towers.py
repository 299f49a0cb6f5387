"""Two towers that are compared: an image encoder and a decoder that reads texts (CLIP, https://arxiv.org/abs/2103.00020;
SigLIP, https://arxiv.org/abs/2303.15343)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8, jaxtyped

from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.layers.cross_attention import CrossAttention
from mllm_jax.models.layers.feed_forward import FeedForward
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.norms import layer_norm, unit
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.vit import FeatureConfig, ViT, ViTConfig

Pooling = Literal["class_token", "mean", "attention"]


class AttentionPool(nn.Module):
    """A learned query that reads all features, and a feed-forward layer: SigLIP's head."""

    config: ViTConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, features: Float[Array, "B P D"]) -> Float[Array, "B D"]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        initializer = named(nn.initializers.normal(0.02), None, "embed")
        query = self.param("query", initializer, (1, config.width), self.param_dtype).astype(self.dtype)
        query = jnp.broadcast_to(query, (len(features), *query.shape))
        heads = config.heads, config.heads, config.width // config.heads
        pooled = CrossAttention(*heads, bias=True, name="attention", **formats)(query, features)
        normed = layer_norm(config.norm_epsilon, name="norm", **formats)(pooled)
        feed_forward = FeedForward(config.feed_forward_width, config.activation, name="feed_forward", **formats)
        return (pooled + feed_forward(normed))[:, 0]


class Towers(nn.Module):
    """The towers are called `encoder` and `decoder`, as they are in a `Multimodal`."""

    image: ViTConfig
    """All of its layers are run, whatever its features are."""
    text: DecoderConfig
    pooling: Pooling
    """What stands for an image: its class token, the mean of its patches, or what a learned query reads of them."""
    width: int | None
    """Of the space in which images and texts are compared; None: images' own, without a projection."""
    text_bias: bool
    """Of the projection of texts."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        features = FeatureConfig(
            layer=-1, keep_class_token=self.pooling == "class_token", post_norm=self.image.final_norm
        )
        self.encoder = ViT(self.image.model_copy(update={"features": features}), **formats)
        self.decoder = Decoder(self.text, None, **formats)
        if self.pooling == "attention":
            self.pool = AttentionPool(self.image, **formats)
        if self.width is not None:
            self.image_projection = Projection((self.width,), ("embed",), (None,), **formats)
        width = self.width or self.image.width
        self.text_projection = Projection((width,), ("embed",), (None,), bias=self.text_bias, **formats)

    @jaxtyped(typechecker=beartype)
    def compared_images(self, images: UInt8[Array, "M H W 3"]) -> Float32[Array, "M E"]:
        """What is compared of every image, of length 1."""
        features = self.encoder(images)
        if self.pooling == "attention":
            pooled = self.pool(features)
        else:
            pooled = features[:, 0] if self.pooling == "class_token" else jnp.mean(features, axis=1)
        return unit(pooled if self.width is None else self.image_projection(pooled))

    @jaxtyped(typechecker=beartype)
    def compared_texts(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        answer_mask: Bool[Array, "B T"],
        slots: int,
    ) -> Float32[Array, "M E"]:
        """What is compared of the texts with numbers 1 to `slots` in every row, of length 1; `M = B * slots`.

        A text's last token stands for it. Rows are packed, and prefix attention reads a text in both directions.
        """
        hidden, _ = self.decoder(self.decoder.embed(tokens), segment_ids, positions, answer_mask=answer_mask)
        inside = segment_ids[:, None] == jnp.arange(1, slots + 1)[:, None]
        last = jnp.max(jnp.where(inside, jnp.arange(tokens.shape[1]), 0), axis=2)
        ends = jnp.take_along_axis(hidden, last[..., None], axis=1)
        return unit(self.text_projection(ends.reshape(-1, hidden.shape[-1])))

    def initialise(self) -> None:
        """Runs every part once, so that `init(key, method="initialise")` makes every parameter."""
        self.compared_images(jnp.zeros((1, *self.image.image_size, 3), jnp.uint8))
        zeros = jnp.zeros((1, 1), jnp.int32)
        self.compared_texts(zeros, zeros, zeros, zeros > 0, 1)
