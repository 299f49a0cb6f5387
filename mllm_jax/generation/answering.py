"""From conversations to answers: what chat, batch generation and evaluation share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.record import ImagePart, Part, Record, TextPart
from data_pipelines.rendered import ImageLayout, LayoutOf, RenderedRecord
from data_pipelines.storage import Storage
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.transforms.chat_template import render, render_prompt, stop_ids
from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.transforms.instructions import InstructionEncoder, instructed
from data_pipelines.transforms.templates import ChatTemplate
from data_pipelines.transforms.tile_marks import marked
from data_pipelines.transforms.tiles import TiledImages
from mllm_jax.generation.decode import DecodingConfig, LanguageModel, check_prompt, generate, instructions_of, stream
from mllm_jax.generation.prompts import Prompt
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.models.multimodal import MultimodalConfig, slot_features, tile_features
from mllm_jax.models.parameters import Parameters, make_model
from mllm_jax.models.vit import ViTConfig

IMAGE_MARK = "<image>"

UNFINISHED_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the first bytes of a character to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str
    """Without surrounding white space and special tokens."""
    tokens: tuple[int, ...]
    """Without the stop token."""
    finished: bool
    """Whether the model ended its turn; False when `max_new_tokens` cut it off."""


class Answerer:
    """A loaded model with everything that asking it takes."""

    def __init__(self, loaded: LoadedModel, decoding: DecodingConfig, storage: Storage | None = None) -> None:
        """Check that the model can be talked with.

        Args:
            loaded: the model.
            decoding: how it answers.
            storage: what reads images; None: one of the defaults.

        Raises:
            ValueError: a vision encoder alone, or a folder without a tokenizer, a known chat template or, for tiled
                images, a known image transform, or without a tokenizer for a connector that reads instructions.
        """
        if isinstance(loaded.config, ViTConfig):
            raise ValueError(f"{loaded.source} holds a vision encoder alone; it has no words to answer with.")
        if loaded.tokenizer is None:
            raise ValueError(f"{loaded.source} holds no tokenizer, so nothing can be asked of the model.")
        if loaded.chat_template is None:
            raise ValueError(
                f"{loaded.source} does not say which chat template the model was trained with. Name one where the "
                "model is loaded or imported."
            )
        self.loaded = loaded
        self.decoding = decoding
        self.tokenizer: Tokenizer = loaded.tokenizer
        tiling = loaded.config.tiling if isinstance(loaded.config, MultimodalConfig) else None
        self.template: ChatTemplate
        self.template, self._marks = marked(loaded.chat_template, tiling, self.tokenizer)
        self.model: LanguageModel = make_model(loaded.config, dtype=loaded.compute_dtype)  # type: ignore[assignment]
        # Widening is exact; left to the compiled step, it would be done again for every token.
        self.parameters = _widened(loaded.parameters, loaded.compute_dtype)
        self.image_tokens = slot_features(loaded.config) if isinstance(loaded.config, MultimodalConfig) else 0
        """Of the image of one slot."""
        self.stop_tokens = stop_ids(self.template, self.tokenizer)
        self.storage = storage or Storage()
        self._tiled = self._tiled_images()
        self._instructions = self._instruction_encoder()
        self._laid_out: int | LayoutOf = self.image_tokens if self._tiled is None else self._tiled.layout

    def prompt(self, record: Record, read: Callable[[ImagePart], bytes] | None = None) -> Prompt:
        """Render a conversation up to where the assistant begins, and decode its images.

        Args:
            record: a conversation; if it ends with an assistant turn, that turn is the one to be generated.
            read: gives an image's encoded bytes, where they have been read already.

        Raises:
            ImageError: an image that cannot be decoded.
            ValueError: images for a language model without an encoder.
        """
        rendered = render_prompt(record, self.template, self.tokenizer, self._laid_out)
        if rendered.images and not isinstance(self.loaded.config, MultimodalConfig):
            raise ValueError(f"{record.key} has an image, but {self.loaded.source} is a language model without eyes.")
        layouts = rendered.layouts or (None,) * len(rendered.images)
        contents = map(read or self._read, rendered.images)
        images = tuple(self._decoded(data, layout) for data, layout in zip(contents, layouts, strict=True))
        asked = instructed(rendered, record, self._instructions).instructions
        return Prompt(rendered.tokens, rendered.image_starts, images, rendered.layouts, rendered.in_answer, asked)

    def rendered(self, record: Record) -> RenderedRecord:
        """Render a whole conversation, with what is supervised of it."""
        return render(record, self.template, self.tokenizer, self._laid_out)

    def check(self, prompt: Prompt) -> None:
        """Raise ValueError if the prompt does not fit the model."""
        check_prompt(self.model, self.parameters, prompt, self.decoding.max_new_tokens)

    def pixels(self, image: ImagePart) -> np.ndarray:
        """Read and decode one image: u8[H, W, 3] at the encoder's size, or its tiles, u8[S, H, W, 3]."""
        return self._decoded(self._read(image), None if self._tiled is None else self._tiled.layout(image))

    def _read(self, image: ImagePart) -> bytes:
        return self.storage.read_image(image.source)

    def _decoded(self, data: bytes, layout: ImageLayout | None) -> np.ndarray:
        if self._tiled is None or layout is None:
            return decode_image(data, self.image_transform)
        return self._tiled.decode(data, layout)

    def _tiled_images(self) -> TiledImages | None:
        config = self.loaded.config
        if not isinstance(config, MultimodalConfig) or config.tiling is None:
            return None
        return TiledImages(config.tiling, self.image_transform, tile_features(config), self.storage, self._marks)

    def _instruction_encoder(self) -> InstructionEncoder | None:
        length, tokenizer = instructions_of(self.model), self.loaded.instruction_tokenizer
        if not length:
            return None
        if tokenizer is None:
            raise ValueError(f"{self.loaded.source} holds no tokenizer of the instructions that its connector reads.")
        return InstructionEncoder(tokenizer, length)

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer prompts, `decoding.rows` at a time."""
        answers = generate(self.model, self.parameters, prompts, self.stop_tokens, self.decoding)
        return [self._answer(tokens) for tokens in answers]

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """Answer one prompt, yielding the text as it grows; the pieces joined are the answer."""
        tokens: list[int] = []
        said = ""
        key = jax.random.key(self.decoding.seed)
        for new in stream(self.model, self.parameters, [prompt], self.decoding, key):
            if int(new[0]) in self.stop_tokens:
                break
            tokens.append(int(new[0]))
            text = self.tokenizer.decode(tokens).lstrip()
            if text.endswith(UNFINISHED_CHARACTER):
                continue
            yield text[len(said) :]
            said = text
        yield self.tokenizer.decode(tokens).lstrip()[len(said) :]

    def _answer(self, tokens: list[int]) -> Answer:
        finished = len(tokens) < self.decoding.max_new_tokens
        return Answer(self.tokenizer.decode(tokens).strip(), tuple(tokens), finished)

    @property
    def image_transform(self) -> ImageTransformConfig:
        """How images become the encoder's size; ValueError where the folder does not say."""
        if self.loaded.image_transform is None:
            raise ValueError(f"{self.loaded.source} does not say how images are resized for the model.")
        return self.loaded.image_transform


def _widened(parameters: Parameters, dtype: Any) -> Parameters:
    """Parameters of a narrower format than `dtype` in that format, the others as they are."""
    width = jnp.dtype(dtype).itemsize
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype.itemsize < width else leaf, parameters)


def user_parts(text: str, images: Sequence[ImagePart]) -> tuple[Part, ...]:
    """Return what a user says: images stand where the text says `<image>`, or first when it does not.

    Raises:
        ValueError: another number of marks than of images.
    """
    pieces = text.split(IMAGE_MARK)
    if len(pieces) == 1:
        return (*images, TextPart(text)) if text.strip() else tuple(images)
    if len(pieces) != len(images) + 1:
        raise ValueError(f"found {len(pieces) - 1} {IMAGE_MARK} marks for {len(images)} images in {text[:60]!r}.")
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        parts.extend(images[index - 1 : index] if index else ())
        if piece.strip():
            parts.append(TextPart(piece.strip()))
    return tuple(parts)
