"""Finds the family of a `config.json`, and the family that one of our configs belongs to."""

from typing import Any

from mllm_jax.interop.families.clip import CLIP
from mllm_jax.interop.families.dinov2 import DINOV2
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.llama import LLAMA
from mllm_jax.interop.families.llava import llava
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import ModelConfig
from mllm_jax.models.vit import ViTConfig

ENCODER_FAMILIES = (CLIP, SIGLIP, DINOV2)
DECODER_FAMILIES = (LLAMA,)


def family_of_folder(config: HuggingFaceConfig) -> Family:
    """The family of a model folder's `config.json`.

    Raises:
        FamilyError: another `model_type`, or quantised weights.
    """
    if "quantization_config" in config:
        raise FamilyError("config.json has a quantization_config: quantised weights cannot be imported.")
    if config.get("model_type") == "llava":
        encoder = _by_model_type(config.get("vision_config", {}), ENCODER_FAMILIES, "clip_vision_model")
        return llava(encoder, _by_model_type(config.get("text_config", {}), DECODER_FAMILIES, "llama"))
    return _by_model_type(config, ENCODER_FAMILIES + DECODER_FAMILIES, None)


def _by_model_type(config: HuggingFaceConfig, families: tuple[Family, ...], default: str | None) -> Family:
    model_type = config.get("model_type", default)
    for family in families:
        if model_type in family.model_types:
            return family
    known = sorted(name for family in families for name in family.model_types)
    raise FamilyError(f"model_type is {model_type!r} in config.json; {', '.join(known)} can be imported.")


def family_of_config(config: ModelConfig) -> Family[Any]:
    """The family as which a model of ours can be exported.

    Raises:
        FamilyError: it is like no family; the message says why for each.
    """
    if isinstance(config, MultimodalConfig):
        whole = llava(family_of_config(config.encoder), family_of_config(config.decoder))
        whole.to_hugging_face(config)
        return whole
    reasons = []
    family: Family[Any]
    for family in _CANDIDATES[type(config)]:
        try:
            family.to_hugging_face(config)
        except FamilyError as error:
            reasons.append(str(error))
        else:
            return family
    listed = "\n  ".join(reasons)
    raise FamilyError(f"This {type(config).__name__} is like no family that can be exported:\n  {listed}")


_CANDIDATES: dict[type, tuple[Family[Any], ...]] = {ViTConfig: ENCODER_FAMILIES, DecoderConfig: DECODER_FAMILIES}
