"""Phi-3 and Phi-4-mini, whose queries, keys and values lie in one tensor, as do gate and up."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import (
    BLOCK,
    NORMS_BEFORE,
    ROTARY,
    decoder_table,
    our_sizes,
    require_only,
    their_sizes,
    with_defaults,
)
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require
from mllm_jax.interop.families.rotary_keys import our_rotary, their_rotary
from mllm_jax.interop.rules import LINEAR, LINEAR_FROM_HEADS, Joined, Rule
from mllm_jax.models.decoder import DecoderConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
"""What transformers takes for a key that a config.json leaves out."""

_KINDS = ("longrope",)

_TABLE = decoder_table(
    NORMS_BEFORE,
    [
        Rule(BLOCK + "self_attn.qkv_proj.weight", f"blocks/attention/{part}/kernel", LINEAR, joined=Joined(place))
        for place, part in enumerate(("query", "key", "value"))
    ],
    [Rule(BLOCK + "self_attn.o_proj.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS)],
    [
        Rule(BLOCK + "mlp.gate_up_proj.weight", f"blocks/feed_forward/{part}/kernel", LINEAR, joined=Joined(place))
        for place, part in enumerate(("gate", "up"))
    ],
    [Rule(BLOCK + "mlp.down_proj.weight", "blocks/feed_forward/down/kernel", LINEAR)],
)


def _phi3(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS)
    require("Phi-3", config, hidden_act="silu")
    sizes = our_sizes(config)
    rope = config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    return DecoderConfig(
        **sizes | our_rotary("Phi-3", _renamed(config), _KINDS, partial=True),
        rotary_width=None if share == 1.0 else int(sizes["head_width"] * share),
        sliding_window=config.get("sliding_window"),
    )


def _renamed(config: HuggingFaceConfig) -> HuggingFaceConfig:
    """The config with the name that longrope has today ("su" and "yarn" in early files)."""
    scaling = dict(config.get("rope_scaling") or {})
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("su", "yarn"):
        scaling["rope_type"] = "longrope"
    return {**config, "rope_scaling": scaling or None}


def _their_phi3(config: DecoderConfig) -> dict[str, Any]:
    require_only("Phi-3", config, ROTARY | {"sliding_window", "rotary_width"})
    if config.heads * config.head_width != config.width:
        raise FamilyError(
            f"Phi-3 models have heads * head_width = width, but this one has {config.heads} * {config.head_width} and "
            f"{config.width}."
        )
    keys = their_rotary("Phi-3", config, _KINDS)
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "sliding_window": config.sliding_window,
        "partial_rotary_factor": (config.rotary_width or config.head_width) / config.head_width,
        "original_max_position_embeddings": config.position_switch or config.max_positions,
        **their_sizes(config),
        **keys,
        # transformers takes token 32000 where nothing is said, whatever the vocabulary.
        "pad_token_id": None,
    }


PHI3 = Family("phi3", ("phi3",), _TABLE, _phi3, _their_phi3)
