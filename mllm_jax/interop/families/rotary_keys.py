"""Rotary positions in a config.json: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""

import math
from collections.abc import Callable
from typing import Any

from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.rotary_scaling import (
    DynamicRotaryScaling,
    LinearRotaryScaling,
    Llama3RotaryScaling,
    LongRotaryScaling,
    RotaryScaling,
    YarnRotaryScaling,
)

USUAL_KINDS = ("linear", "dynamic", "llama3", "yarn")
"""Scalings that most families have beside "default"."""


def our_rotary(
    family: str, config: HuggingFaceConfig, kinds: tuple[str, ...] = USUAL_KINDS, partial: bool = False
) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling`, and with a dynamic scaling `max_positions`.

    Args:
        family: for the error.
        config: with `rope_theta` at its default where the file leaves it out.
        kinds: scalings that the family has.
        partial: whether its heads may be turned in part.

    Raises:
        FamilyError: another scaling, or keys of it that are missing.
    """
    rope: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope = {key: value for key, value in rope.items() if value is not None}
    theta: float = rope["rope_theta"] if "rope_theta" in rope else config["rope_theta"]
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not partial:
        raise FamilyError(f"{family}: partial_rotary_factor is {share} in config.json, but only 1.0 can be imported.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in kinds:
        known = ", ".join(("default", *kinds))
        raise FamilyError(f"{family}: rope_type is {kind!r} in config.json; {known} can be imported.")
    try:
        scaling = _READERS[kind](rope, config)
    except KeyError as error:
        raise FamilyError(f"{family}: rope_type is {kind!r} in config.json, but {error.args[0]} is missing.") from None
    fields = {"rope_theta": theta, "rope_scaling": scaling}
    if isinstance(scaling, DynamicRotaryScaling):
        fields["max_positions"] = int(scaling.original_positions * scaling.factor)
    return fields


def _original(rope: dict[str, Any], config: HuggingFaceConfig) -> int:
    key = "original_max_position_embeddings"
    return config.get(key) or rope.get(key) or config["max_position_embeddings"]


def _linear(rope: dict[str, Any], config: HuggingFaceConfig) -> RotaryScaling:
    return LinearRotaryScaling(factor=rope["factor"])


def _dynamic(rope: dict[str, Any], config: HuggingFaceConfig) -> RotaryScaling:
    return DynamicRotaryScaling(factor=rope["factor"], original_positions=config["max_position_embeddings"])


def _llama3(rope: dict[str, Any], config: HuggingFaceConfig) -> RotaryScaling:
    return Llama3RotaryScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_positions=_original(rope, config),
    )


def _yarn(rope: dict[str, Any], config: HuggingFaceConfig) -> RotaryScaling:
    factor, attention_factor = rope["factor"], rope.get("attention_factor")
    scales = rope.get("mscale"), rope.get("mscale_all_dim")
    if attention_factor is None and all(scales) and factor > 1:
        above, below = (0.1 * math.log(factor) * scale + 1 for scale in scales if scale is not None)
        attention_factor = above / below
    return YarnRotaryScaling(
        factor=factor,
        original_positions=_original(rope, config),
        fast_turns=rope.get("beta_fast") or 32,
        slow_turns=rope.get("beta_slow") or 1,
        whole_dimensions=rope.get("truncate", True),
        attention_factor=attention_factor,
    )


def _long(rope: dict[str, Any], config: HuggingFaceConfig) -> RotaryScaling:
    original = _original(rope, config)
    factor = rope.get("factor", config["max_position_embeddings"] / original)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRotaryScaling(
        short_factors=tuple(rope["short_factor"]),
        long_factors=tuple(rope["long_factor"]),
        original_positions=original,
        attention_factor=rope.get("attention_factor", usual),
    )


_READERS: dict[str, Callable[[dict[str, Any], HuggingFaceConfig], RotaryScaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
}


def their_rotary(family: str, config: DecoderConfig, kinds: tuple[str, ...] = USUAL_KINDS) -> dict[str, Any]:
    """The keys that transformers 4 and 5 both read; with a dynamic scaling also `max_position_embeddings`.

    Raises:
        FamilyError: a scaling that the family does not have.
    """
    scaling = config.rope_scaling
    keys: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    if scaling is None:
        return keys
    if scaling.kind not in kinds:
        raise FamilyError(
            f"{family} models have rope_scaling of kind {', '.join(kinds)}, but this one has {scaling.kind!r}."
        )
    keys["rope_scaling"] = {"rope_type": scaling.kind, **_their_scaling(scaling)}
    if isinstance(scaling, DynamicRotaryScaling):
        keys["max_position_embeddings"] = scaling.original_positions
    return keys


def _their_scaling(scaling: RotaryScaling) -> dict[str, Any]:
    match scaling:
        case LinearRotaryScaling() | DynamicRotaryScaling():
            return {"factor": scaling.factor}
        case Llama3RotaryScaling():
            return {
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_positions,
            }
        case YarnRotaryScaling():
            return {
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_positions,
                "beta_fast": scaling.fast_turns,
                "beta_slow": scaling.slow_turns,
                "truncate": scaling.whole_dimensions,
                **({} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}),
            }
        case LongRotaryScaling():
            return {
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "original_max_position_embeddings": scaling.original_positions,
                "attention_factor": scaling.attention_factor,
            }
