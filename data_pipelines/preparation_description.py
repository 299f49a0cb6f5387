"""What a stage's tokens and pixels are made by, as a value that JSON can hold: any process can make them of it."""

from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from data_pipelines.blank_images import without_decoding
from data_pipelines.config_class import Config
from data_pipelines.preparation import Preparation
from data_pipelines.record import Record
from data_pipelines.rendered import RenderedRecord
from data_pipelines.storage import Storage
from data_pipelines.tokenizer import Tokenizer, tokenizer_from_files
from data_pipelines.transforms.augmentation import AugmentationConfig, augmented
from data_pipelines.transforms.chat_template import render
from data_pipelines.transforms.image import ImageTransformConfig, decode_image, decode_with
from data_pipelines.transforms.instructions import InstructionEncoder, instructed
from data_pipelines.transforms.pairs import CaptionEncoder, render_pair
from data_pipelines.transforms.preferences import render_preference
from data_pipelines.transforms.templates import ChatTemplate
from data_pipelines.transforms.tile_grid import Size
from data_pipelines.transforms.tile_marks import marked
from data_pipelines.transforms.tiles import TiledImages
from data_pipelines.transforms.tiling import TilingConfig


def _written(tokenizer: Tokenizer) -> dict[str, str]:
    return {name: content.decode() for name, content in tokenizer.files().items()}


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return tokenizer_from_files({name: content.encode() for name, content in value.items()})


WrittenTokenizer = Annotated[Tokenizer, BeforeValidator(_read), PlainSerializer(_written)]
"""In JSON the contents of its files."""


class _Texts(Config):
    model_config = ConfigDict(arbitrary_types_allowed=True)


class PairTexts(_Texts):
    """Images beside their texts; no template and no decoder has a part in it."""

    kind: Literal["pairs"] = "pairs"
    tokenizer: WrittenTokenizer
    """Of what reads the texts."""
    length: int
    """As `CaptionEncoder` has it; likewise the others."""
    first: tuple[int, ...]
    last: tuple[int, ...]

    def prepare(self, pixels: "PreparationDescription", storage: Storage) -> Preparation:
        """Tokens by this, pixels by the rest of the description."""
        encode = CaptionEncoder(self.tokenizer, self.length, self.first, self.last)
        return Preparation(
            render=lambda record: render_pair(record, encode),
            decode=partial(decode_image, config=pixels.transform),
            image_tokens=0,
            image_size=pixels.transform.size,
        )


class ConversationTexts(_Texts):
    """Conversations, or pairs of them to compare, as a chat template writes them."""

    kind: Literal["conversations"] = "conversations"
    tokenizer: WrittenTokenizer
    """Of the decoder."""
    template: ChatTemplate
    image_tokens: int
    """Of one slot."""
    tiling: TilingConfig | None = None
    """Null: an image takes one slot."""
    features: Size = (1, 1)
    """Rows and columns of what the connector makes of a tile."""
    instruction_tokenizer: WrittenTokenizer | None = None
    """Of a connector that reads text; null: it reads none."""
    instruction_tokens: int = 0
    """Longest instruction."""
    preferences: bool = False
    """Whether records are preference pairs."""
    references: bool = False
    """Whether a reference model has scored them."""

    def prepare(self, pixels: "PreparationDescription", storage: Storage) -> Preparation:
        """Tokens by this, pixels by the rest of the description; `storage` reads the headers of tiled images."""
        template, marks = marked(self.template, self.tiling, self.tokenizer)
        tiled = None
        if self.tiling is not None:
            tiled = TiledImages(self.tiling, pixels.transform, self.features, storage, marks)
        laid_out = tiled.layout if tiled else self.image_tokens
        instructions = None
        if self.instruction_tokenizer is not None:
            instructions = InstructionEncoder(self.instruction_tokenizer, self.instruction_tokens)

        def conversation(record: Record) -> RenderedRecord:
            return instructed(render(record, template, self.tokenizer, laid_out), record, instructions)

        compared = partial(render_preference, render=conversation, scored=self.references)
        return Preparation(
            render=compared if self.preferences else conversation,
            decode=partial(decode_image, config=pixels.transform),
            image_tokens=self.image_tokens,
            image_size=pixels.transform.size,
            tiled=tiled,
            instruction_tokens=self.instruction_tokens,
            preferences=self.preferences,
            references=self.references,
        )


class PreparationDescription(Config):
    """What a `Preparation` is made of."""

    texts: Annotated[PairTexts | ConversationTexts, Field(discriminator="kind")]
    transform: ImageTransformConfig
    """Of an image, or of the base tile of one."""
    augmentation: AugmentationConfig | None = None
    """What changes images at random; null: nothing does."""
    blank: bool = False
    """Whether images are black and none is decoded."""

    def prepare(self, storage: Storage) -> Preparation:
        """Makes what is described.

        Args:
            storage: reads the headers of tiled images.

        Raises:
            ValueError: the tokenizer does not fit the template or the tiling.
        """
        prepared = replace(self.texts.prepare(self, storage), description=self)
        if self.blank:
            return without_decoding(prepared)
        if self.augmentation is None:
            return prepared
        return replace(prepared, augment=partial(_augment, self.transform, self.augmentation))


def _augment(transform: ImageTransformConfig, config: AugmentationConfig, data: bytes, seed: int) -> np.ndarray:
    """The pixels of an encoded image, changed as the seed says: u8[H, W, 3]."""
    return decode_with(data, transform, lambda pixels: augmented(pixels, config, transform, seed))
