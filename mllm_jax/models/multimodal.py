"""Any encoder, any connector and one decoder."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8, jaxtyped
from pydantic import model_validator

from data_pipelines.config_class import Config
from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.separate_tiles import TileMarks
from data_pipelines.transforms.tile_grid import Size
from data_pipelines.transforms.tiling import TilingConfig, image_layout
from mllm_jax.models.connectors.choice import (
    ConnectorConfig,
    added_weights,
    instruction_tokens,
    is_merged,
    make_connector,
)
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.connectors.newline import NewlineConnector
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.fused import EncoderConfig, make_encoder
from mllm_jax.models.layers.cache import KVCache
from mllm_jax.models.layers.grid_positions import grid_positions
from mllm_jax.models.layers.media import Media, latest_images

GRID_CONNECTORS = LinearConfig | MLPConfig | PixelShuffleConfig
"""Connectors whose features lie in rows and columns, as the patches do that they are made of."""


class MultimodalConfig(Config):
    encoder: EncoderConfig
    connector: ConnectorConfig = MLPConfig()
    decoder: DecoderConfig
    tiling: TilingConfig | None = None
    """How an image becomes several tiles, each in an image slot; null: an image takes one slot."""

    @model_validator(mode="after")
    def _connectable(self) -> "MultimodalConfig":
        slot_features(self)  # Raises where the encoder's patches do not suit the connector.
        if self.tiling is not None:
            tile_features(self)
            self.tiling.check_tile(self.encoder.image_size)
        if self.decoder.rotary_sections is not None:
            token_grid(self)
        added = added_weights(self.connector)
        if added is not None:
            added.check_decoder(self.decoder.layers, self.decoder.experts is not None)
        return self


def slot_features(config: MultimodalConfig) -> int:
    """Decoder embeddings that are made of one image slot: of an image, or of a tile of one."""
    return config.connector.tokens(config.encoder.feature_grid)


def tile_features(config: MultimodalConfig) -> Size:
    """Rows and columns of what the connector makes of one tile; one row where tiles are not merged.

    Raises:
        ValueError: they are no rows and columns, so that tiles cannot be merged, or the decoder does not read them
            where they stand.
    """
    kind, count = config.connector.kind, slot_features(config)
    if not isinstance(config.tiling, AnyResConfig):
        if not is_merged(config.connector):
            raise ValueError(
                f"an image of several tiles stands in several slots, of which a connector of kind {kind!r} shows the "
                "decoder the latest only; take another connector, or no tiling"
            )
        return 1, count
    rows, columns, extra = config.encoder.feature_grid
    if extra or count != rows * columns:
        raise ValueError(
            f"tiles are merged row by row, but a connector of kind {kind!r} makes {count} features of a tile of "
            f"{rows} x {columns} patches and {extra} more; take a connector that makes one of each patch, and set "
            "encoder.features.keep_class_token to false"
        )
    return rows, columns


def token_grid(config: MultimodalConfig) -> tuple[int, int]:
    """Rows and columns in which the tokens of one image lie, for a decoder that turns its heads by them.

    Raises:
        ValueError: they lie in none.
    """
    grid, connector = config.encoder.feature_grid, config.connector
    if not isinstance(connector, GRID_CONNECTORS) or grid.extra or config.tiling is not None:
        raise ValueError(
            "decoder.rotary_sections need images whose tokens lie in rows and columns: take a connector of kind "
            "linear, mlp or pixel_shuffle, no tiling, and set encoder.features.keep_class_token to false"
        )
    factor = connector.factor if isinstance(connector, PixelShuffleConfig) else 1
    return grid.rows // factor, grid.columns // factor


def image_tokens(config: MultimodalConfig, size: Size | None = None, marks: TileMarks | None = None) -> int:
    """Decoder tokens that one image takes: the one count that packer, model and exporter share.

    Args:
        config: of the model.
        size: height and width of the image in pixels, by which a model with tiles counts.
        marks: what the chat template writes between tiles (`tile_marks.marked`), which is counted too.

    Raises:
        ValueError: the model has tiles, and no size is given.
    """
    if config.tiling is None:
        return slot_features(config)
    if size is None:
        raise ValueError("how many tokens an image takes in a model with tiles depends on the image's size")
    layout = image_layout(size, config.tiling, config.encoder.image_size, tile_features(config), marks)
    return len(layout.index)


class Multimodal(nn.Module):
    """Images and tokens to logits.

    `__call__` is the whole of it; its parts are methods, so that a loss can start from hidden states and generation
    can encode and prefill once.
    """

    config: MultimodalConfig
    dtype: Any = jnp.float32
    """Compute format."""
    param_dtype: Any = jnp.float32

    def setup(self):
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = make_encoder(self.config.encoder, **formats)
        has_newline = self.config.tiling is not None and self.config.tiling.newline
        self.connector = (NewlineConnector if has_newline else make_connector)(
            self.config.connector, self.config.encoder.feature_grid, self.config.decoder.width, **formats
        )
        self.decoder = Decoder(self.config.decoder, added_weights(self.config.connector), **formats)

    @jaxtyped(typechecker=beartype)
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        images: UInt8[Array, "B N H W 3"],
        image_mask: Bool[Array, "B N"],
        image_index: Int[Array, "B T"],
        answer_mask: Bool[Array, "B T"] | None = None,
        instructions: Int[Array, "B N S"] | None = None,
    ) -> Float32[Array, "B T V"]:
        """Logits of packed rows; arguments as in `data_pipelines.batch.Batch`."""
        features = self.encode_images(images, image_mask, instructions)
        media = self.media(features, image_index, segment_ids)
        embeddings = self.embed(tokens, features, image_index)
        hidden, _ = self.decode(
            embeddings, segment_ids, self.turning(positions, image_index), media=media, answer_mask=answer_mask
        )
        return self.logits(hidden)

    @jaxtyped(typechecker=beartype)
    def encode_images(
        self,
        images: UInt8[Array, "B N H W 3"],
        image_mask: Bool[Array, "B N"],
        instructions: Int[Array, "B N S"] | None = None,
    ) -> Float[Array, "B N I E"]:
        """Raw pixels to `I = slot_features(config)` decoder embeddings a slot; zeros for an empty slot.

        `instructions` are for connectors that read them, and None for the others.
        """
        rows, slots = image_mask.shape
        read = () if instructions is None else (instructions.reshape(rows * slots, instructions.shape[2]),)
        features = self.connector(self.encoder(images.reshape(rows * slots, *images.shape[2:])), *read)
        features = features.reshape(rows, slots, *features.shape[1:])
        return jnp.where(image_mask[..., None, None], features, 0)

    @jaxtyped(typechecker=beartype)
    def embed(
        self, tokens: Int[Array, "B T"], image_features: Float[Array, "B N I E"], image_index: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Token embeddings, with image features where `image_index` (slot * I + feature) is not -1, and the newline
        where it is behind them all (N * I).

        The token id at an image position is never looked up, so it may lie outside the vocabulary. Where the decoder's
        blocks read the features, it is looked up as any other, and the features stand nowhere among the embeddings.
        """
        if not is_merged(self.config.connector):
            return self.decoder.embed(tokens)
        rows, slots, length, width = image_features.shape
        text = self.decoder.embed(jnp.where(image_index < 0, tokens, 0))
        if slots == 0:
            return text
        features = image_features.reshape(rows, slots * length, width)
        if self.config.tiling is not None and self.config.tiling.newline:
            newline = jnp.broadcast_to(self.connector.newline.astype(features.dtype), (rows, 1, width))
            features = jnp.concatenate([features, newline], axis=1)
        gathered = jnp.take_along_axis(features, jnp.maximum(image_index, 0)[..., None], axis=1)
        return jnp.where(image_index[..., None] < 0, text, gathered.astype(text.dtype))

    @jaxtyped(typechecker=beartype)
    def media(
        self,
        image_features: Float[Array, "B N I E"],
        image_index: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
    ) -> Media | None:
        """What the decoder's added weights read of the images; None where images are embeddings and nothing else."""
        if added_weights(self.config.connector) is None:
            return None
        latest = latest_images(image_index, segment_ids, slot_features(self.config))
        return Media(image_features, latest, image_index >= 0)

    @jaxtyped(typechecker=beartype)
    def turning(self, positions: Int[Array, "B T"], image_index: Int[Array, "B T"]) -> Int[Array, "B T *axes"]:
        """The positions by which the decoder turns its heads: places in the text, or in it and in an image's grid."""
        if self.config.decoder.rotary_sections is None:
            return positions
        return grid_positions(positions, image_index, token_grid(self.config))

    @jaxtyped(typechecker=beartype)
    def decode(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T *axes"],
        cache: KVCache | None = None,
        media: Media | None = None,
        answer_mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm; see `Decoder.__call__`."""
        return self.decoder(embeddings, segment_ids, positions, cache, media, answer_mask)

    @jaxtyped(typechecker=beartype)
    def logits(self, hidden: Float[Array, "B T D"]) -> Float32[Array, "B T V"]:
        return self.decoder.logits(hidden)

    def initialise(self) -> Float32[Array, "1 1 V"]:
        """Runs every part once, so that `init(key, method="initialise")` makes every parameter."""
        length = instruction_tokens(self.config.connector)
        read = (jnp.zeros((1, length), jnp.int32),) if length else ()
        features = self.connector(self.encoder.initialise(), *read)
        zeros = jnp.zeros((1, 1), jnp.int32)
        return self.decoder.initialise(self.media(features[:, None], zeros, zeros))
