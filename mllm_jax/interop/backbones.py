"""Pretrained encoders and decoders for a run: what a folder holds, and its weights at the sizes that the run wants."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mllm_jax.interop.adjustments import Adjustment, decoder_adjustments, encoder_adjustments
from mllm_jax.interop.families.choice import family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.families.vision import pixel_statistics
from mllm_jax.interop.hub import local_folder
from mllm_jax.interop.weights import Loaded, Tree, load
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.vit import ViTConfig

Backbone = ViTConfig | DecoderConfig

ADJUSTMENTS: dict[type, Callable[[Any, Any], dict[str, Adjustment]]] = {
    ViTConfig: encoder_adjustments,
    DecoderConfig: decoder_adjustments,
}


def architecture_of(weights: str, config_class: type[Backbone]) -> Backbone:
    """The architecture that a Hugging Face folder (or hub id) states.

    Raises:
        FileNotFoundError: no folder, or a folder without config.json.
        FamilyError: another kind of model than `config_class`, or one that cannot be imported.
    """
    folder = local_folder(weights)
    config = _read_json(folder / "config.json")
    ours = family_of_folder(config).from_hugging_face(config)
    if not isinstance(ours, config_class):
        wanted = "a vision encoder" if config_class is ViTConfig else "a language model"
        raise FamilyError(f"{folder} holds a model of type {config.get('model_type')!r}, expected {wanted}.")
    preprocessor = folder / "preprocessor_config.json"
    if isinstance(ours, ViTConfig) and preprocessor.is_file():
        ours = ours.model_copy(update=pixel_statistics(_read_json(preprocessor)))
    return ours


def load_backbone(weights: str, wanted: Backbone, abstract: Tree) -> Loaded:
    """A folder's weights as the parameters of `wanted`: positions resized, vocabulary extended where it asks for it.

    Args:
        weights: Hugging Face folder or hub id.
        wanted: the run's architecture.
        abstract: its parameters as `ShapeDtypeStruct` with shardings.

    Raises:
        WeightsError: naming every tensor that is missing, unexpected or misshaped.
    """
    folder = local_folder(weights)
    config = _read_json(folder / "config.json")
    adjustments = ADJUSTMENTS[type(wanted)](architecture_of(weights, type(wanted)), wanted)
    return load(
        folder,
        family_of_folder(config).table,
        abstract,
        jax.tree.map(lambda leaf: leaf.sharding, abstract),
        adjustments,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} is no Hugging Face model folder: it has no {path.name}") from None
    except ValueError as error:
        raise FamilyError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FamilyError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value
