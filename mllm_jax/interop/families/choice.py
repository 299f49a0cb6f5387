"""Finds the family of a `config.json`, and the family that one of our configs belongs to."""

from collections.abc import Mapping
from typing import Any

from mllm_jax.interop.families.blip2 import BLIP2, INSTRUCTBLIP
from mllm_jax.interop.families.composite import CompositeFamily, tower_of
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.idefics import IDEFICS
from mllm_jax.interop.families.idefics2 import IDEFICS2
from mllm_jax.interop.families.idefics3 import IDEFICS3
from mllm_jax.interop.families.internvl import INTERNVL
from mllm_jax.interop.families.llava import LLAVA
from mllm_jax.interop.families.llava_next import LLAVA_NEXT
from mllm_jax.interop.families.paligemma import PALIGEMMA
from mllm_jax.interop.families.parts import (
    DECODER_FAMILIES,
    ENCODER_FAMILIES,
    by_model_type,
    no_family,
    part_of_config,
)
from mllm_jax.interop.families.qwen2_vl import QWEN2_VL
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import ModelConfig

COMPOSITE_FAMILIES: tuple[CompositeFamily, ...] = (
    LLAVA,
    LLAVA_NEXT,
    IDEFICS3,
    INTERNVL,
    BLIP2,
    INSTRUCTBLIP,
    IDEFICS,
    IDEFICS2,
    QWEN2_VL,
    PALIGEMMA,
)
"""Multimodal families; a model of ours is exported as the first that it is like."""


def family_of_folder(config: HuggingFaceConfig) -> Family[Any]:
    """The family of a model folder's `config.json`.

    Raises:
        FamilyError: another `model_type`, or quantised weights.
    """
    _refuse_quantised(config)
    found = by_model_type(config, (*COMPOSITE_FAMILIES, *ENCODER_FAMILIES, *DECODER_FAMILIES))
    return found.of_folder(config) if isinstance(found, CompositeFamily) else found


def _refuse_quantised(config: HuggingFaceConfig, place: str = "") -> None:
    """Whole models may say of one part alone that its weights are quantised."""
    for key, value in config.items():
        if key == "quantization_config":
            method = value.get("quant_method", "unknown") if isinstance(value, Mapping) else value
            raise FamilyError(
                f"config.json has {place}{key} (quant_method {method}): quantised weights cannot be imported; take the "
                "model as it was before."
            )
        if isinstance(value, Mapping):
            _refuse_quantised(value, f"{place}{key}.")


def family_of_config(config: ModelConfig) -> Family[Any]:
    """The family as which a model of ours can be exported.

    Raises:
        FamilyError: it is like no family; the message says why for each.
    """
    if not isinstance(config, MultimodalConfig):
        return part_of_config(config)
    tower_of(config)  # Raises for the models that no family has.
    reasons = []
    for composite in COMPOSITE_FAMILIES:
        try:
            _agree_on_tiles(composite, config)
            family = composite.of_config(config)
            family.to_hugging_face(config)
        except FamilyError as error:
            reasons.append(str(error))
        else:
            return family
    raise no_family(config, list(dict.fromkeys(reasons)))


def _agree_on_tiles(composite: CompositeFamily, config: MultimodalConfig) -> None:
    if (config.tiling and config.tiling.kind) not in composite.tilings:
        tiles = " or ".join(f"several tiles ({kind})" if kind else "one whole" for kind in composite.tilings)
        names = ", ".join(composite.model_types)
        raise FamilyError(
            f"{names}: these models take an image as {tiles}, but this one's tiling is {config.tiling!r}."
        )
