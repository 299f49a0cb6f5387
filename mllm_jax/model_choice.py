"""What a run file says of the model: presets, weights and changed fields, and the architecture they come to."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from data_pipelines.config_class import Config
from data_pipelines.suggestion import suggest
from data_pipelines.transforms.image import ImageTransformConfig, mean_colour
from data_pipelines.transforms.tiling import TilingConfig
from mllm_jax.config_errors import sentences
from mllm_jax.interop.backbones import architecture_of
from mllm_jax.models.connectors.choice import ConnectorConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.fused import EncoderConfig, FusedConfig
from mllm_jax.models.layers.precision import PrecisionConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.presets import DECODERS, ENCODERS
from mllm_jax.models.vit import ViTConfig
from mllm_jax.run_file import KeyPath, RawRun, RunFileError, format_key

ConfigType = TypeVar("ConfigType", bound=Config)
Found = TypeVar("Found")


class EncoderPart(Config):
    """A vision transformer: a named size or a pretrained folder, with fields changed."""

    preset: str | None = None
    """A named size of models/presets.py; where `weights` are given, they say the architecture instead."""
    weights: str | None = None
    """A Hugging Face folder, an imported folder or a hub id; null starts from random parameters."""
    architecture: dict[str, Any] = Field(default={}, json_schema_extra={"$ref_fields": "ViTConfig"})
    """Fields of ViTConfig that differ from the preset's or the weights'."""


class EncoderChoice(EncoderPart):
    """The vision encoder: one vision transformer, or several side by side."""

    fused_with: tuple[EncoderPart, ...] = ()
    """Those beside this one; the features of all are concatenated, so their patches must lie in the same grid."""


class DecoderChoice(Config):
    """The decoder LLM: a named size or a pretrained folder, with fields changed."""

    preset: str | None = None
    """A named size of models/presets.py; where `weights` are given, they say the architecture instead."""
    weights: str | None = None
    """A Hugging Face folder, an imported folder or a hub id; null starts from random parameters."""
    architecture: dict[str, Any] = Field(default={}, json_schema_extra={"$ref_fields": "DecoderConfig"})
    """Fields of DecoderConfig that differ from the preset's or the weights'."""
    vocabulary_multiple: int = Field(default=64, gt=0)
    """The embedding is padded to a multiple of this many rows once the tokenizer's added tokens need room. Rows that
    only pad it are never predicted, and are cut off on export."""


class ModelChoice(Config):
    """Any encoder x any connector x one decoder, and what turns conversations into their tokens and pixels."""

    weights: str | None = None
    """A whole model that the run begins with: a run directory, one checkpoint of it, an imported folder, a Hugging Face
    folder or a hub id. It must have the architecture that is said here; what it has no parameters for (the text side of
    a Q-Former that read no text) begins as the keys below say. Null: each part begins by its own key."""
    encoder: EncoderChoice
    connector: ConnectorConfig
    connector_weights: str | None = None
    """A folder or hub id with an OpenFlamingo checkpoint as safetensors, for a connector of kind
    `gated_cross_attention`: the embeddings of tokens that are in it replace the decoder's. Or with a BERT, for one of
    kind `q_former`, of which all but what reads the image begins as BERT. Null starts from random parameters."""
    decoder: DecoderChoice
    tokenizer: str | None = None
    """A SentencePiece `.model`, a `tokenizer.json` or a folder with either; null takes that of the whole
    model that the run begins with, or else of the decoder's weights folder."""
    instruction_tokenizer: str | None = None
    """Likewise, of the instructions that a connector reads with an image (`connector.text`); null: it reads none."""
    chat_template: str
    """The template of the finished model, and of every stage that does not name its own."""
    image_transform: dict[str, Any] = Field(default={})
    """Fields of ImageTransformConfig; the size is the encoder's, the colour beside a padded image its mean colour."""
    tiling: TilingConfig | None = None
    """How an image becomes several tiles of the encoder's size, each in an image slot; null: it takes one slot."""
    precision: PrecisionConfig = PrecisionConfig()


def complete_architectures(model: ModelChoice, raw: RawRun) -> ModelChoice:
    """`model` with every field of both architectures and of the image transform written out.

    Raises:
        RunFileError: an unknown preset, a folder that is not there or holds another model, a wrong or missing field.
    """
    encoder = _complete_encoder(model.encoder, ("model", "encoder"), raw)
    decoder = _complete(model.decoder, DECODERS, DecoderConfig, ("model", "decoder"), raw)
    return model.model_copy(
        update={
            "encoder": encoder,
            "decoder": model.decoder.model_copy(update={"architecture": decoder}),
            "image_transform": _complete_transform(model.image_transform, encoder_config(encoder), raw),
        }
    )


def _complete_encoder(choice: EncoderChoice, key: KeyPath, raw: RawRun) -> EncoderChoice:
    architecture = _complete(choice, ENCODERS, ViTConfig, key, raw)
    others = tuple(
        other.model_copy(
            update={"architecture": _complete(other, ENCODERS, ViTConfig, (*key, "fused_with", index), raw)}
        )
        for index, other in enumerate(choice.fused_with)
    )
    complete = choice.model_copy(update={"architecture": architecture, "fused_with": others})
    try:
        encoder_config(complete)
    except ValidationError as error:
        place = f"{raw.origin(key)}: {format_key(key)}"
        raise RunFileError("\n".join(f"{place}: {problem['msg']}" for problem in error.errors())) from None
    return complete


def encoder_config(choice: EncoderChoice) -> EncoderConfig:
    """The encoder of a choice whose architectures are complete."""
    parts = [ViTConfig.model_validate(each.architecture) for each in (choice, *choice.fused_with)]
    return FusedConfig(parts=tuple(parts)) if choice.fused_with else parts[0]


def _complete_transform(changes: dict[str, Any], encoder: EncoderConfig, raw: RawRun) -> dict[str, Any]:
    key: KeyPath = ("model", "image_transform")
    values = {"size": encoder.image_size, "fill": mean_colour(encoder.pixel_mean)} | changes
    transform = _validated(ImageTransformConfig, values, key, raw)
    if transform.size != encoder.image_size:
        place = f"{raw.origin((*key, 'size'))}: {format_key((*key, 'size'))}"
        raise RunFileError(f"{place}: found {transform.size}, but the encoder takes images of {encoder.image_size}")
    return transform.model_dump(mode="json")


def _complete(
    choice: EncoderPart | DecoderChoice,
    presets: dict[str, Any],
    config_class: type[ViTConfig] | type[DecoderConfig],
    key: KeyPath,
    raw: RawRun,
) -> dict[str, Any]:
    if choice.preset is not None and choice.preset not in presets:
        place = f"{raw.origin((*key, 'preset'))}: {format_key((*key, 'preset'))}"
        names = ", ".join(sorted(presets))
        hint = suggest(choice.preset, presets)
        raise RunFileError(f"{place}: there is no preset {choice.preset!r}.{hint} Presets: {names}.")
    base: dict[str, Any] = {}
    if choice.weights is not None:
        read = partial(architecture_of, config_class=config_class)
        base = _found(choice.weights, (*key, "weights"), raw, read).model_dump()
    elif choice.preset is not None:
        base = presets[choice.preset].model_dump()
    values = _overlay(base, choice.architecture)
    return _validated(config_class, values, (*key, "architecture"), raw).model_dump(mode="json")


def _found(path: str, key: KeyPath, raw: RawRun, read: Callable[[str], Found]) -> Found:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise RunFileError(f"{raw.origin(key)}: {format_key(key)}: {error}") from error


def _validated(config_class: type[ConfigType], values: dict[str, Any], key: KeyPath, raw: RawRun) -> ConfigType:
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise RunFileError("\n".join(sentences(error, config_class, raw, key, values))) from None


def _overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def multimodal_config(model: ModelChoice, tokens: int) -> MultimodalConfig:
    """The model's architecture for a tokenizer of `tokens` entries.

    The decoder's embedding grows to the next multiple of `vocabulary_multiple` where the tokenizer's entries exceed it.
    """
    decoder = DecoderConfig.model_validate(model.decoder.architecture)
    if tokens > decoder.vocab_size:
        multiple = model.decoder.vocabulary_multiple
        rows = -(-tokens // multiple) * multiple
        decoder = decoder.model_copy(update={"vocab_size": rows, "vocab_used": tokens if tokens < rows else None})
    encoder = encoder_config(model.encoder)
    return MultimodalConfig(encoder=encoder, connector=model.connector, decoder=decoder, tiling=model.tiling)
