"""The weights of a whole model, as what a run begins with."""

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.model_folder import load_model, read_model_description, read_virtual_tokens
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.interop.weights import Tree
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters

MOST_NAMED = 8


def check_whole_model(weights: str, wanted: MultimodalConfig) -> None:
    """Checks that what a path holds can be what a model begins with: every parameter of it has its place there.

    Raises:
        FamilyError: it holds a part of a model alone.
        WeightsError: naming the parameters that have no place in the model, or are of another shape.
        FileNotFoundError: there is no model at the path.
    """
    if read_virtual_tokens(weights) is not None:
        raise WeightsError(
            f"model.weights: the last stage of {weights} learned virtual tokens, which no model begins with; name a "
            "checkpoint of an earlier stage"
        )
    found = read_model_description(weights).model
    if not isinstance(found, MultimodalConfig):
        kind = type(found).__name__.removesuffix("Config")
        raise FamilyError(
            f"model.weights: {weights} holds a {kind} alone, expected a whole multimodal model; name it in "
            "model.encoder.weights or model.decoder.weights"
        )
    ours, theirs = (flatten_dict(abstract_parameters(config), sep="/") for config in (wanted, found))
    problems = [
        f"{path}: found {list(leaf.shape)}, expected {list(ours[path].shape) if path in ours else 'no such parameter'}"
        for path, leaf in theirs.items()
        if path not in ours or ours[path].shape != leaf.shape
    ]
    if problems:
        others = f"\n  and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        listed = "\n  ".join(problems[:MOST_NAMED])
        raise WeightsError(
            f"model.weights: {weights} holds another model than model.encoder, model.connector and model.decoder say "
            f"({len(problems)} of its parameters):\n  {listed}{others}\nSet them, and model.tokenizer, to what it was "
            "trained with."
        )


def load_whole_model(weights: str, abstract: Tree) -> Tree:
    """The parameters that a model at a path has of those asked for.

    Args:
        weights: as `load_model` takes it; the whole of it is in memory for as long as this takes.
        abstract: parameters as `ShapeDtypeStruct` with shardings of one mesh.
    """
    asked = flatten_dict(abstract, sep="/")
    loaded = load_model(weights, next(iter(asked.values())).sharding.mesh)
    found, parameters = flatten_dict(loaded.parameters, sep="/"), {}
    for path in asked.keys() & found.keys():
        # Given up one by one, so that a model in two formats is never in memory whole.
        parameters[path] = jax.device_put(found.pop(path).astype(asked[path].dtype), asked[path].sharding)
    return unflatten_dict(parameters, sep="/")
