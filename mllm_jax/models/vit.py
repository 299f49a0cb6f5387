"""The vision encoder. CLIP, SigLIP, DINOv2 and Qwen2-VL's are values of one config."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Float, Int, UInt8, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.layers.activations import ActivationName
from mllm_jax.models.layers.attention import SelfAttention
from mllm_jax.models.layers.attention_kernels import Choice, Heads, choose_kernel
from mllm_jax.models.layers.axes import IMAGES
from mllm_jax.models.layers.feed_forward import FEED_FORWARDS, FeedForwardName
from mllm_jax.models.layers.grid_positions import grid_angles
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.materialised import materialised
from mllm_jax.models.layers.norms import layer_norm
from mllm_jax.models.layers.positions import resize_positions
from mllm_jax.models.layers.projection import Projection
from mllm_jax.models.layers.stack import StackConfig, run_stack

Angles = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]

HIDDEN_AXES = (*IMAGES, "embed_activation")


class FeatureConfig(Config):
    """Which of the encoder's hidden states are handed on."""

    layer: int = -2
    """Index into [embeddings, output of block 0, output of block 1, ...]: -1 is the last block's output, -2 the one
    before it. Later blocks keep their parameters but are not executed."""
    keep_class_token: bool = False
    """Hand on the class token, before the patches."""
    post_norm: bool = False
    """Apply the encoder's final LayerNorm to the features."""


class ViTConfig(Config):
    """A vision transformer with pre-norm blocks."""

    image_size: tuple[int, int]
    """Height and width in pixels; what is left over by whole patches is cut off at the bottom and the right."""
    patch_size: int = Field(gt=0)
    """Side of a patch in pixels."""
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    feed_forward_width: int = Field(gt=0)
    activation: ActivationName = "gelu"
    class_token: bool = True
    registers: int = Field(default=0, ge=0)
    """Extra learned tokens without a position (https://arxiv.org/abs/2309.16588); never handed on."""
    patch_bias: bool = True
    patch_frames: int = Field(default=1, gt=0)
    """Frames that a patch reads; an image is shown in all of them (Qwen2-VL has 2)."""
    attention_bias: bool = True
    """Whether queries, keys and values have a bias; the attention's output has one in any case."""
    feed_forward: FeedForwardName = "plain"
    """gated: two inner projections, of which the activated one scales the other (DINOv2 giant)."""
    pre_norm: bool = False
    """LayerNorm before the first block (CLIP)."""
    final_norm: bool = True
    """LayerNorm after the last block; it exists even where `features.post_norm` does not apply it."""
    layer_scale: bool = False
    """A learned factor a channel on every residual branch (DINOv2)."""
    norm_epsilon: float = Field(default=1e-6, gt=0)
    positions: Literal["learned", "rotary"] = "learned"
    """A table that is added to the patches, or rows and columns that turn the heads."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies."""
    position_grid: tuple[int, int] | None = None
    """Rows and columns of patches that the stored position table covers; null: the image's own. Another grid is
    resized in the forward pass (bicubic), which keeps a pretrained table exact."""
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of red, green, blue on a scale of 0 to 1, taken off every pixel."""
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of red, green, blue on the same scale."""
    features: FeatureConfig = FeatureConfig()
    stack: StackConfig = StackConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "ViTConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.positions == "rotary":
            self._check_rotary()
        if min(self.image_size) < self.patch_size:
            raise ValueError(f"image_size {self.image_size} holds no patch of {self.patch_size} pixels")
        if not -self.layers - 1 <= self.features.layer <= self.layers:
            raise ValueError(f"features.layer {self.features.layer} is not one of the {self.layers + 1} hidden states")
        if self.features.keep_class_token and not self.class_token:
            raise ValueError("features.keep_class_token needs class_token")
        if self.features.post_norm and not self.final_norm:
            raise ValueError("features.post_norm needs final_norm")
        return self

    def _check_rotary(self) -> None:
        if self.class_token or self.registers or self.position_grid is not None:
            raise ValueError("rotary positions are of patches alone: no class_token, registers or position_grid")
        if (self.width // self.heads) % 4:
            raise ValueError(
                f"rotary positions turn two halves of a head in pairs, but heads are {self.width // self.heads} wide"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in the stored position table."""
        return self.position_grid or self.grid

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches inside the encoder: class token and registers."""
        return int(self.class_token) + self.registers

    @property
    def feature_grid(self) -> FeatureGrid:
        """How the features of one image lie."""
        return FeatureGrid(*self.grid, extra=int(self.features.keep_class_token))

    @property
    def patches(self) -> int:
        """Features that the encoder hands on for one image."""
        return self.feature_grid.total

    @property
    def executed_layers(self) -> int:
        layer = self.features.layer
        return layer if layer >= 0 else self.layers + 1 + layer


def encoder_kernel(config: ViTConfig, dtype: Any, on: str) -> Choice:
    """By what an encoder attends on a platform, in a compute format."""
    return choose_kernel(config.stack.attention, Heads(config.width // config.heads, dtype), on)


class EncoderBlock(nn.Module):
    config: ViTConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(
        self, hidden: Float[Array, "B T D"], layer: Int[Array, ""], angles: Angles | None
    ) -> tuple[Float[Array, "B T D"], None]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = SelfAttention(
            config.heads,
            config.heads,
            config.width // config.heads,
            bias=config.attention_bias,
            output_bias=True,
            kernel=config.stack.attention,
            batch_axes=IMAGES,
            name="attention",
            **formats,
        )
        feed_forward = FEED_FORWARDS[config.feed_forward](
            config.feed_forward_width,
            activation=config.activation,
            bias=True,
            batch_axes=IMAGES,
            name="feed_forward",
            **formats,
        )
        normed = materialised(layer_norm(config.norm_epsilon, name="attention_norm", **formats)(hidden))
        hidden = hidden + self._scaled("attention_scale", attention(normed, angles=angles)[0])
        normed = materialised(layer_norm(config.norm_epsilon, name="feed_forward_norm", **formats)(hidden))
        hidden = hidden + self._scaled("feed_forward_scale", feed_forward(normed))
        return nn.with_logical_constraint(hidden, HIDDEN_AXES), None

    def _scaled(self, name: str, branch: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        if not self.config.layer_scale:
            return branch
        scale = self.param(name, named(nn.initializers.ones, "embed"), (self.config.width,), self.param_dtype)
        return branch * scale.astype(branch.dtype)


class ViT(nn.Module):
    config: ViTConfig
    dtype: Any = jnp.float32
    """Compute format."""
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        """Raw pixels to features, `P = config.patches`."""
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if images.shape[1:3] != config.image_size:
            raise ValueError(f"images are {images.shape[1:3]} pixels, but the encoder takes {config.image_size}")
        hidden = self._with_prefix_and_positions(self._embedded(images))
        if config.pre_norm:
            hidden = layer_norm(config.norm_epsilon, name="pre_norm", **formats)(hidden)
        hidden = nn.with_logical_constraint(hidden, HIDDEN_AXES)
        blocks = run_stack(self, EncoderBlock, {"config": config, **formats}, config.stack, config.executed_layers)
        hidden = blocks(hidden, self._angles(hidden.shape[0]))
        if config.features.post_norm or (config.final_norm and self.is_initializing()):
            hidden = layer_norm(config.norm_epsilon, name="post_norm", **formats)(hidden)
        features = hidden[:, config.prefix_tokens :]
        if config.features.keep_class_token:
            features = jnp.concatenate([hidden[:, :1], features], axis=1)
        return features

    def _embedded(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        config, formats = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        patches = _patches(self._normalised(images), config.patch_size)
        axes: tuple[None, ...] = (None, None, None)
        if config.patch_frames > 1:
            patches = jnp.repeat(patches[:, :, None], config.patch_frames, axis=2)
            axes = (None, *axes)
        return Projection((config.width,), axes, ("embed",), config.patch_bias, name="patch_embedding", **formats)(
            patches
        )

    def _angles(self, images: int) -> Angles | None:
        """By which the heads of patches turn; None: they do not."""
        config = self.config
        if config.positions == "learned":
            return None
        cosine, sine = grid_angles(config.grid, config.width // config.heads, config.rope_theta)
        shape = (images, *cosine.shape[1:])
        return jnp.broadcast_to(cosine, shape), jnp.broadcast_to(sine, shape)

    def _normalised(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        mean, std = jnp.array(self.config.pixel_mean), jnp.array(self.config.pixel_std)
        return ((images.astype(jnp.float32) / 255.0 - mean) / std).astype(self.dtype)

    def _with_prefix_and_positions(self, patches: Float[Array, "B P D"]) -> Float[Array, "B T D"]:
        """[class token, registers, patches]; the registers alone have no position in the table."""
        config = self.config
        if config.positions == "rotary":
            return patches
        rows, _, width = patches.shape
        normal = nn.initializers.truncated_normal(0.02)
        along_width = named(normal, "embed")
        tokens_by_width = named(normal, None, "embed")
        # big_vision's scale: at 0.02 a narrow tower's positions drown in its patches.
        position_scale = named(nn.initializers.truncated_normal(1 / math.sqrt(width)), None, "embed")
        table_rows = config.table_grid[0] * config.table_grid[1] + int(config.class_token)
        table = self.param("position_embedding", position_scale, (table_rows, width), self.param_dtype)
        table = resize_positions(table, config.table_grid, config.grid).astype(self.dtype)
        parts = [patches + table[int(config.class_token) :]]
        if config.registers:
            registers = self.param("registers", tokens_by_width, (config.registers, width), self.param_dtype)
            parts.insert(0, jnp.broadcast_to(registers.astype(self.dtype), (rows, config.registers, width)))
        if config.class_token:
            token = self.param("class_token", along_width, (width,), self.param_dtype).astype(self.dtype) + table[0]
            parts.insert(0, jnp.broadcast_to(token, (rows, 1, width)))
        return jnp.concatenate(parts, axis=1)

    def initialise(self) -> Float[Array, "1 P D"]:
        """Runs every part once, so that `init(key, method="initialise")` makes every parameter."""
        return self(jnp.zeros((1, *self.config.image_size, 3), jnp.uint8))


def _patches(images: Float[Array, "B H W 3"], size: int) -> Float[Array, "B P size size 3"]:
    """Cuts images into patches, row by row: what a convolution of stride `size` reads."""
    rows, height, width, channels = images.shape
    down, across = height // size, width // size
    images = images[:, : down * size, : across * size]
    images = images.reshape(rows, down, size, across, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(rows, down * across, size, size, channels)
