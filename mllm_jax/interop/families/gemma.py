"""Gemma 1, 2 and 3 (text)."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import (
    DECODER_TABLE,
    NORMS_AROUND,
    ROTARY,
    SEPARATE_ATTENTION,
    SEPARATE_FEED_FORWARD,
    decoder_table,
    our_sizes,
    our_windows,
    require_only,
    their_layer_types,
    their_sizes,
    with_defaults,
)
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require
from mllm_jax.interop.families.rotary_keys import our_rotary, their_rotary
from mllm_jax.models.decoder import DecoderConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
"""What transformers takes for a key that a config.json leaves out."""

_GEMMA2_DEFAULTS = _DEFAULTS | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}

_GEMMA3_DEFAULTS = _GEMMA2_DEFAULTS | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}

_ALWAYS: dict[str, Any] = {"norm": "rms_one_plus", "activation": "gelu_tanh", "scaled_embeddings": True}
_AROUND: dict[str, Any] = _ALWAYS | {"post_norms": True}

_TABLE_AROUND = decoder_table(NORMS_AROUND, SEPARATE_ATTENTION, SEPARATE_FEED_FORWARD)


def _gemma(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS)
    # Early files say "gelu" and mean the approximation.
    if config.get("hidden_act") != "gelu":
        require("Gemma", config, hidden_act="gelu_pytorch_tanh")
    require("Gemma", config, use_bidirectional_attention=False)
    return DecoderConfig(
        **our_sizes(config) | our_rotary("Gemma", config) | _ALWAYS,
        attention_bias=config.get("attention_bias", False),
    )


def _their_gemma(config: DecoderConfig) -> dict[str, Any]:
    require_only("Gemma", config, ROTARY | {"attention_bias"}, **_ALWAYS)
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": config.attention_bias,
        **their_sizes(config),
        **their_rotary("Gemma", config),
    }


def _gemma2(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _GEMMA2_DEFAULTS)
    require("Gemma 2", config, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=False)
    alternating = [layer % 2 == 0 for layer in range(config["num_hidden_layers"])]
    return DecoderConfig(
        **our_sizes(config) | our_rotary("Gemma 2", config) | our_windows("Gemma 2", config, alternating) | _AROUND,
        attention_bias=config.get("attention_bias", False),
        score_width=config["query_pre_attn_scalar"],
        attention_soft_cap=config.get("attn_logit_softcapping"),
        logit_soft_cap=config.get("final_logit_softcapping"),
    )


_GEMMA2_FREE = ROTARY | {"attention_bias", "score_width", "logit_soft_cap", "sliding_window", "sliding_layers"}


def _their_gemma2(config: DecoderConfig) -> dict[str, Any]:
    require_only("Gemma 2", config, _GEMMA2_FREE | {"attention_soft_cap"}, **_AROUND)
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": config.attention_soft_cap,
        **_their_alternation("Gemma 2", config),
        **their_sizes(config),
        **their_rotary("Gemma 2", config),
    }


def _their_alternation(family: str, config: DecoderConfig) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common beside the sizes."""
    if config.width % config.heads:
        raise FamilyError(f"{family} models have a width that heads divide, but this one has {config.width}.")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": config.score_width or config.head_width,
        "final_logit_softcapping": config.logit_soft_cap,
        "sliding_window": config.sliding_window,
        "layer_types": their_layer_types(config),
    }


def _gemma3(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _GEMMA3_DEFAULTS)
    require("Gemma 3", config, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=False)
    require("Gemma 3", config, attn_logit_softcapping=None)
    every = config["sliding_window_pattern"]
    local = [(layer + 1) % every != 0 for layer in range(config["num_hidden_layers"])]
    windows = our_windows("Gemma 3", config, local)
    full, sliding_theta = _two_bases(config)
    return DecoderConfig(
        **our_sizes(config) | our_rotary("Gemma 3", full) | windows | _AROUND,
        query_key_norm=True,
        attention_bias=config.get("attention_bias", False),
        score_width=config["query_pre_attn_scalar"],
        logit_soft_cap=config.get("final_logit_softcapping"),
        sliding_rope_theta=sliding_theta if windows else None,
    )


def _two_bases(config: HuggingFaceConfig) -> tuple[HuggingFaceConfig, float]:
    """The config with the rotary keys of the global layers, and the base of those with a window."""
    nested = config.get("rope_parameters") or {}
    local = nested.get("sliding_attention") or {}
    require("Gemma 3 layers with a window", local, rope_type="default")
    theta: float = local["rope_theta"] if "rope_theta" in local else config["rope_local_base_freq"]
    return {**config, "rope_parameters": nested.get("full_attention")}, theta


def _their_gemma3(config: DecoderConfig) -> dict[str, Any]:
    free = _GEMMA2_FREE | {"sliding_rope_theta"}
    require_only("Gemma 3", config, free, query_key_norm=True, **_AROUND)
    if config.sliding_rope_theta is None and config.sliding_window is not None and config.rope_scaling is not None:
        raise FamilyError("Gemma 3 models scale rotary positions in their global layers only, but this one in all.")
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **_their_alternation("Gemma 3", config),
        "rope_local_base_freq": config.sliding_rope_theta or config.rope_theta,
        **their_sizes(config),
        **their_rotary("Gemma 3", config),
    }


GEMMA = Family("gemma", ("gemma",), DECODER_TABLE, _gemma, _their_gemma)
GEMMA2 = Family("gemma2", ("gemma2",), _TABLE_AROUND, _gemma2, _their_gemma2)
GEMMA3 = Family("gemma3", ("gemma3_text",), _TABLE_AROUND, _gemma3, _their_gemma3)
