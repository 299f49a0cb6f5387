"""Qwen2, Qwen2.5 and Qwen3 (dense)."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import (
    DECODER_TABLE,
    ROTARY,
    our_sizes,
    our_windows,
    require_only,
    their_layer_types,
    their_sizes,
    with_defaults,
)
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require
from mllm_jax.interop.families.rotary_keys import our_rotary, their_rotary
from mllm_jax.models.decoder import DecoderConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
"""What transformers takes for a key that a config.json leaves out."""

WINDOWS = frozenset({"sliding_window", "sliding_layers"})


def our_qwen_windows(family: str, config: HuggingFaceConfig) -> dict[str, Any]:
    """Windows as Qwen's configs say them: behind a switch, in the layers from `max_window_layers` on."""
    if not config.get("use_sliding_window", False) or "sliding_window" not in config:
        return {}
    first = config["max_window_layers"]
    return our_windows(family, config, [layer >= first for layer in range(config["num_hidden_layers"])])


def their_qwen_windows(config: DecoderConfig) -> dict[str, Any]:
    """The keys of `our_qwen_windows`."""
    kinds = their_layer_types(config)
    full = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": full[-1] + 1 if full else 0,
        "layer_types": kinds,
    }


def _qwen2(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS)
    require("Qwen2", config, hidden_act="silu")
    return DecoderConfig(
        **our_sizes(config) | our_rotary("Qwen2", config) | our_qwen_windows("Qwen2", config),
        attention_bias=True,
        attention_output_bias=False,
    )


def _their_qwen2(config: DecoderConfig) -> dict[str, Any]:
    require_only("Qwen2", config, ROTARY | WINDOWS, attention_bias=True, attention_output_bias=False)
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        **their_qwen_windows(config),
        **their_sizes(config),
        **their_rotary("Qwen2", config),
    }


def _qwen3(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS | {"head_dim": 128})
    require("Qwen3", config, hidden_act="silu")
    return DecoderConfig(
        **our_sizes(config) | our_rotary("Qwen3", config) | our_qwen_windows("Qwen3", config),
        query_key_norm=True,
        attention_bias=config.get("attention_bias", False),
    )


def _their_qwen3(config: DecoderConfig) -> dict[str, Any]:
    require_only("Qwen3", config, ROTARY | WINDOWS | {"attention_bias"}, query_key_norm=True)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        **their_qwen_windows(config),
        **their_sizes(config),
        **their_rotary("Qwen3", config),
    }


QWEN2 = Family("qwen2", ("qwen2",), DECODER_TABLE, _qwen2, _their_qwen2)
QWEN3 = Family("qwen3", ("qwen3",), DECODER_TABLE, _qwen3, _their_qwen3)
