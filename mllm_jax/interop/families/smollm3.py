"""SmolLM3: LLaMA with layers that do not turn their heads."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import (
    DECODER_TABLE,
    ROTARY,
    our_pattern,
    our_sizes,
    our_windows,
    require_only,
    their_layer_types,
    their_pattern,
    their_sizes,
    with_defaults,
)
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require
from mllm_jax.interop.families.rotary_keys import our_rotary, their_rotary
from mllm_jax.models.decoder import DecoderConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 2000000.0,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
"""What transformers takes for a key that a config.json leaves out."""

_FREE = ROTARY | {"attention_bias", "feed_forward_bias", "rotary_layers", "sliding_window", "sliding_layers"}


def _smollm3(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS)
    require("SmolLM3", config, hidden_act="silu")
    every, layers = config["no_rope_layer_interval"], config["num_hidden_layers"]
    turned = config.get("no_rope_layers", [(layer + 1) % every != 0 for layer in range(layers)])
    flags = [bool(flag) for flag in turned[:layers]]
    sliding = config.get("use_sliding_window", False) and "sliding_window" in config
    windows = our_windows("SmolLM3", config, [not flag for flag in flags]) if sliding else {}
    return DecoderConfig(
        **our_sizes(config) | our_rotary("SmolLM3", config) | windows,
        rotary_layers=our_pattern(flags),
        attention_bias=config.get("attention_bias", False),
        feed_forward_bias=config.get("mlp_bias", False),
    )


def _their_smollm3(config: DecoderConfig) -> dict[str, Any]:
    require_only("SmolLM3", config, _FREE)
    return {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "no_rope_layers": [int(flag) for flag in their_pattern(config, config.rotary_layers)],
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": their_layer_types(config),
        **their_sizes(config),
        **their_rotary("SmolLM3", config),
        # transformers takes a token of its own vocabulary where nothing is said.
        "pad_token_id": None,
    }


SMOLLM3 = Family("smollm3", ("smollm3",), DECODER_TABLE, _smollm3, _their_smollm3)
