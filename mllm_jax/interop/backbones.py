"""Pretrained encoders and decoders for a run: what a folder holds, and its weights at the sizes that the run wants."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.interop.adjustments import Adjustment, decoder_adjustments, encoder_adjustments
from mllm_jax.interop.description import read_description
from mllm_jax.interop.families.choice import family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.families.vision import pixel_statistics
from mllm_jax.interop.hub import local_folder
from mllm_jax.interop.imported_folder import is_imported_folder, read_parameter
from mllm_jax.interop.processor import has_model_config, image_processor_config, model_config
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.interop.weights import Loaded, Tree, load
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.vit import ViTConfig

Backbone = ViTConfig | DecoderConfig

ADJUSTMENTS: dict[type, Callable[[Any, Any], dict[str, Adjustment]]] = {
    ViTConfig: encoder_adjustments,
    DecoderConfig: decoder_adjustments,
}


def architecture_of(weights: str, config_class: type[Backbone]) -> Backbone:
    """The architecture that a Hugging Face folder, an imported folder or a hub id states.

    Raises:
        FileNotFoundError: no folder, or a folder that holds no model.
        FamilyError: another kind of model than `config_class`, or one that cannot be imported.
    """
    folder = local_folder(weights)
    found = read_description(folder).model if is_imported_folder(folder) else _hugging_face_architecture(folder)
    if not isinstance(found, config_class):
        wanted = "a vision encoder" if config_class is ViTConfig else "a language model"
        raise FamilyError(f"{folder} holds a {type(found).__name__.removesuffix('Config')}, expected {wanted}.")
    return found


def _hugging_face_architecture(folder: Path) -> Any:
    if not has_model_config(folder):
        raise FileNotFoundError(f"{folder} holds no model: it has neither config.json nor mllm_model.json.")
    config = model_config(folder)
    try:
        model = family_of_folder(config).from_hugging_face(config)
        if isinstance(model, ViTConfig):
            model = model.model_copy(update=pixel_statistics(image_processor_config(folder)))
    except FamilyError as error:
        raise FamilyError(f"{folder}: {error}") from error
    return model


def load_backbone(weights: str, wanted: Backbone, abstract: Tree) -> Loaded:
    """A folder's weights as the parameters of `wanted`: positions resized, vocabulary extended where it asks for it.

    Args:
        weights: Hugging Face folder, imported folder or hub id.
        wanted: the run's architecture.
        abstract: its parameters as `ShapeDtypeStruct` with shardings.

    Raises:
        WeightsError: naming every tensor that is missing, unexpected or misshaped.
    """
    folder = local_folder(weights)
    adjustments = ADJUSTMENTS[type(wanted)](architecture_of(weights, type(wanted)), wanted)
    if is_imported_folder(folder):
        return _load_imported(folder, abstract, adjustments)
    table = family_of_folder(model_config(folder)).table
    return load(folder, table, abstract, jax.tree.map(lambda leaf: leaf.sharding, abstract), adjustments)


def _load_imported(folder: Path, abstract: Tree, adjustments: Mapping[str, Adjustment]) -> Loaded:
    parameters: dict[str, jax.Array] = {}
    problems: list[str] = []
    for path, leaf in flatten_dict(abstract, sep="/").items():
        array = read_parameter(folder, path)
        if path in adjustments and array.shape == adjustments[path].source_shape(leaf.shape):
            array = adjustments[path].apply(array)
        if array.shape != leaf.shape:
            problems.append(f"{path}: found {list(array.shape)}, expected {list(leaf.shape)}")
            continue
        array = array.astype(leaf.dtype, copy=False)
        parameters[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)
    if problems:
        raise WeightsError(f"The weights in {folder} do not fit the model:\n  " + "\n  ".join(problems))
    adjusted = tuple(f"{path}: {adjustment.describe()}" for path, adjustment in adjustments.items())
    return Loaded(unflatten_dict(parameters, sep="/"), adjusted, ())
