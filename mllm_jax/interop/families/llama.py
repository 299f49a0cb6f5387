"""LLaMA 1 to 3 and the models that share its architecture under its name (Vicuna, SmolLM2), and Mistral."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import (
    DECODER_TABLE,
    ROTARY,
    our_sizes,
    require_only,
    their_sizes,
    with_defaults,
)
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require
from mllm_jax.interop.families.rotary_keys import our_rotary, their_rotary
from mllm_jax.models.decoder import DecoderConfig

TABLE = DECODER_TABLE

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""What transformers takes for a key that a config.json leaves out."""

_MISTRAL_DEFAULTS = _DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def _llama(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS)
    require("LLaMA", config, hidden_act="silu")
    return DecoderConfig(
        **our_sizes(config) | our_rotary("LLaMA", config),
        attention_bias=config.get("attention_bias", False),
        feed_forward_bias=config.get("mlp_bias", False),
    )


def _their_llama(config: DecoderConfig) -> dict[str, Any]:
    """A `LlamaConfig`, in the keys that transformers 4 and 5 both read."""
    require_only("LLaMA", config, ROTARY | {"attention_bias", "feed_forward_bias"})
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        **their_sizes(config),
        **their_rotary("LLaMA", config),
    }


def _mistral(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _MISTRAL_DEFAULTS)
    require("Mistral", config, hidden_act="silu")
    window = config.get("sliding_window")
    return DecoderConfig(**our_sizes(config) | our_rotary("Mistral", config), sliding_window=window)


def _their_mistral(config: DecoderConfig) -> dict[str, Any]:
    require_only("Mistral", config, ROTARY | {"sliding_window"})
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "sliding_window": config.sliding_window,
        **their_sizes(config),
        **their_rotary("Mistral", config),
    }


LLAMA = Family("llama", ("llama",), TABLE, _llama, _their_llama)
MISTRAL = Family("mistral", ("mistral",), TABLE, _mistral, _their_mistral)
