"""Hugging Face folders in: what one holds, and turning it into this project's own folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.transforms.templates import ChatTemplate, ImageFormat
from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.families.choice import family_of_folder
from mllm_jax.interop.families.composite import MultimodalFamily, tower_of
from mllm_jax.interop.families.family import Family, FamilyError
from mllm_jax.interop.families.vision import pixel_statistics
from mllm_jax.interop.imported_folder import write_imported
from mllm_jax.interop.instruction_tokenizer import check_vocabulary, read_instruction_tokenizer
from mllm_jax.interop.processor import chat_template, image_processor_config, image_transform, model_config
from mllm_jax.interop.safetensors_folder import SafetensorsFolder
from mllm_jax.interop.weights import Reading
from mllm_jax.models.connectors.choice import text_side
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import ModelConfig, abstract_parameters
from mllm_jax.models.vit import ViTConfig


@dataclass(frozen=True)
class HuggingFaceFolder:
    """What a folder holds, its weights unread."""

    folder: Path
    family: Family
    description: ModelDescription
    tokenizer: Tokenizer | None
    instruction_tokenizer: Tokenizer | None = None
    """Of the instructions that the connector reads; None: it reads none."""

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Open the weights, having checked that they are those of the description.

        Raises:
            WeightsError: naming every tensor that is missing, unexpected, misshaped or quantised.
            FileNotFoundError: there are no weights.
        """
        with SafetensorsFolder(self.folder) as source:
            yield Reading(source, self.family.table, abstract_parameters(self.description.model))


def read_folder(folder: Path) -> HuggingFaceFolder:
    """Read a folder's config, processor, chat template and tokenizer.

    Raises:
        FileNotFoundError: the folder has no config.json, or no tokenizer where one is needed.
        FamilyError: an architecture or a setting that cannot be imported.
        ValueError: a tokenizer that does not fit the embedding.
    """
    config = model_config(folder)
    try:
        family = family_of_folder(config)
        model = family.from_hugging_face(config)
        preprocessor = image_processor_config(folder)
        if isinstance(model, ViTConfig):
            model = model.model_copy(update=pixel_statistics(preprocessor))
        elif isinstance(family, MultimodalFamily):
            model = _processed(model, family, preprocessor)
    except FamilyError as error:
        raise FamilyError(f"{folder}: {error}") from error
    whole = family if isinstance(family, MultimodalFamily) else None
    tokenizer = _image_tokenizer(folder, whole, config) if whole else _text_tokenizer(folder, model)
    if tokenizer is not None:
        _check_size(folder, tokenizer, model)
    model, instruction_tokenizer = _instructed(folder, model, whole)
    transform = whole.processor.image_transform if whole else image_transform
    surrounds = whole.processor.surrounds(model) if whole and isinstance(model, MultimodalConfig) else None
    description = ModelDescription(
        model=model,
        chat_template=_chat_template(folder, whole, tokenizer, surrounds) if tokenizer else None,
        image_transform=None if isinstance(model, DecoderConfig) else transform(preprocessor),
    )
    return HuggingFaceFolder(folder, family, description, tokenizer, instruction_tokenizer)


def import_folder(source: Path, output: Path) -> HuggingFaceFolder:
    """Turn a Hugging Face folder into this project's own, one parameter in memory at a time.

    Parameters keep the number format that they are stored in.

    Raises:
        FileExistsError: `output` is there already.
        WeightsError, FamilyError, FileNotFoundError, ValueError: as `read_folder` and `HuggingFaceFolder.reading`.
    """
    found = read_folder(source)
    with found.reading() as reading:
        write_imported(output, found.description, reading.arrays(), found.tokenizer, found.instruction_tokenizer)
    return found


def _processed(model: MultimodalConfig, family: MultimodalFamily, preprocessor: dict[str, Any]) -> MultimodalConfig:
    """The model for images of the size that the processor makes; a position table of another size is resized."""
    encoder = tower_of(model).model_copy(update=pixel_statistics(preprocessor))
    size = family.processor.image_size(preprocessor)
    if size is not None and size != encoder.image_size:
        table = encoder.table_grid if encoder.positions == "learned" else None
        encoder = encoder.model_copy(update={"image_size": size, "position_grid": table})
    tiling = family.processor.tiling(preprocessor) or model.tiling
    model = MultimodalConfig.model_validate(dict(model) | {"encoder": encoder, "tiling": tiling})
    family.to_hugging_face(model)  # Raises where transformers does not resize this family's tables.
    return model


def _image_tokenizer(folder: Path, family: MultimodalFamily, config: dict[str, Any]) -> Tokenizer:
    tokenizer = load_tokenizer(folder, added_tokens=())
    name = next((name for name in family.placeholders if tokenizer.has_special(name)), None)
    tokenizer = load_tokenizer(folder) if name is None else tokenizer.with_image_token(name)
    expected = family.image_token(config)
    if tokenizer.image_id != expected:
        raise ValueError(
            f"{folder}: {tokenizer.image_token} has the id {tokenizer.image_id} in the tokenizer, but config.json says "
            f"that the image token is {expected}."
        )
    return tokenizer


def _chat_template(
    folder: Path, family: MultimodalFamily | None, tokenizer: Tokenizer, surrounds: ImageFormat | None
) -> ChatTemplate | None:
    only = family.processor.template if family else None
    return only or chat_template(folder, tokenizer, surrounds)


def _instructed(
    folder: Path, model: ModelConfig, family: MultimodalFamily | None
) -> tuple[ModelConfig, Tokenizer | None]:
    """The model for instructions as long as their tokenizer's files allow, and the tokenizer."""
    if family is None or family.processor.instruction_folder is None:
        return model, None
    assert isinstance(model, MultimodalConfig)
    text = text_side(model.connector)
    assert text is not None
    place = folder / family.processor.instruction_folder
    tokenizer, longest = read_instruction_tokenizer(place)
    check_vocabulary(tokenizer, model.connector, str(place))
    text = text.model_copy(update={"instruction_tokens": min(longest or text.max_positions, text.max_positions)})
    return model.model_copy(update={"connector": model.connector.model_copy(update={"text": text})}), tokenizer


def _text_tokenizer(folder: Path, model: ModelConfig) -> Tokenizer | None:
    return None if isinstance(model, ViTConfig) else load_tokenizer(folder, added_tokens=())


def _check_size(folder: Path, tokenizer: Tokenizer, model: ModelConfig) -> None:
    assert not isinstance(model, ViTConfig)
    rows = model.decoder.vocab_size if isinstance(model, MultimodalConfig) else model.vocab_size
    if tokenizer.vocabulary_size > rows:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} tokens, but the embedding has {rows} rows only."
        )
