"""The families of vision encoders and of language models: found by a config.json, and for one of our configs."""

from typing import Any

from mllm_jax.interop.families.clip import CLIP
from mllm_jax.interop.families.dinov2 import DINOV2, GATED_DINOV2
from mllm_jax.interop.families.eva import EVA
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.gemma import GEMMA, GEMMA2, GEMMA3
from mllm_jax.interop.families.gpt2 import GPT2
from mllm_jax.interop.families.internvit import INTERNVIT
from mllm_jax.interop.families.llama import LLAMA, MISTRAL
from mllm_jax.interop.families.mixtures import MIXTRAL, QWEN3_MOE
from mllm_jax.interop.families.open_clip import OPEN_CLIP
from mllm_jax.interop.families.opt import OPT
from mllm_jax.interop.families.phi3 import PHI3
from mllm_jax.interop.families.qwen import QWEN2, QWEN3
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.interop.families.smollm3 import SMOLLM3
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.parameters import ModelConfig
from mllm_jax.models.vit import ViTConfig

ENCODER_FAMILIES: tuple[Family[ViTConfig], ...] = (
    CLIP,
    SIGLIP,
    DINOV2,
    GATED_DINOV2,
    EVA,
    INTERNVIT,
    OPEN_CLIP,
)
DECODER_FAMILIES: tuple[Family[DecoderConfig], ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    SMOLLM3,
    OPT,
    GPT2,
    MIXTRAL,
    QWEN3_MOE,
)
"""Language models; one of ours is exported as the first that it is like."""


def encoder_of_folder(config: HuggingFaceConfig, default: str | None = None) -> Family[ViTConfig]:
    """The family of a vision encoder's config.json, or of that part of a whole model's.

    Args:
        default: the `model_type` of a config that does not say its own.

    Raises:
        FamilyError: another `model_type`.
    """
    return by_model_type(config, ENCODER_FAMILIES, default)


def decoder_of_folder(config: HuggingFaceConfig, default: str | None = None) -> Family[DecoderConfig]:
    """The family of a language model's config.json; as `encoder_of_folder`."""
    return by_model_type(config, DECODER_FAMILIES, default)


def by_model_type(config: HuggingFaceConfig, families: tuple[Any, ...], default: str | None = None) -> Any:
    """The entry of a table of families that has a config's `model_type`."""
    model_type = config.get("model_type", default)
    for family in families:
        if model_type in family.model_types and family.accepts(config):
            return family
    known = sorted({name for family in families for name in family.model_types})
    raise FamilyError(f"model_type is {model_type!r} in config.json; {', '.join(known)} can be imported.")


def part_of_config(config: ModelConfig) -> Family[Any]:
    """The family as which an encoder or a decoder of ours can be exported.

    Raises:
        FamilyError: it is like no family; the message says why for each.
    """
    families: tuple[Family[Any], ...] = ENCODER_FAMILIES if isinstance(config, ViTConfig) else DECODER_FAMILIES
    reasons = []
    for family in families:
        try:
            family.to_hugging_face(config)
        except FamilyError as error:
            reasons.append(str(error))
        else:
            return family
    raise no_family(config, reasons)


def no_family(config: ModelConfig, reasons: list[str]) -> FamilyError:
    """The error of a config that every family refuses, each for its reason."""
    listed = "\n  ".join(reasons)
    return FamilyError(f"This {type(config).__name__} is like no family that can be exported:\n  {listed}")
