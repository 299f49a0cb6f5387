"""Mixtures of experts: Mixtral and Qwen3-MoE."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import (
    BLOCK,
    NORMS_BEFORE,
    ROTARY,
    SEPARATE_ATTENTION,
    decoder_table,
    our_sizes,
    require_only,
    their_sizes,
    with_defaults,
)
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require
from mllm_jax.interop.families.rotary_keys import our_rotary, their_rotary
from mllm_jax.interop.rules import LINEAR, Rule
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.experts import ExpertsConfig

_MIXTRAL_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
"""What transformers takes for a key that a config.json leaves out."""

_QWEN3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
}


def _expert_rules(router: str, experts: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    parts = ((gate, "gate"), (up, "up"), (down, "down"))
    return (
        Rule(f"{BLOCK}{router}.weight", "blocks/feed_forward/router/kernel", LINEAR),
        *(
            Rule(f"{BLOCK}{experts}.{{expert}}.{theirs}.weight", f"blocks/feed_forward/{ours}/kernel", LINEAR)
            for theirs, ours in parts
        ),
    )


_MIXTRAL_TABLE = decoder_table(
    NORMS_BEFORE,
    SEPARATE_ATTENTION,
    _expert_rules("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2"),
)
_QWEN3_TABLE = decoder_table(
    NORMS_BEFORE,
    SEPARATE_ATTENTION,
    _expert_rules("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj"),
)


def _mixtral(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _MIXTRAL_DEFAULTS)
    require("Mixtral", config, hidden_act="silu", router_jitter_noise=0.0)
    experts = ExpertsConfig(
        count=config["num_local_experts"], chosen=config["num_experts_per_tok"], width=config["intermediate_size"]
    )
    return DecoderConfig(
        **our_sizes(config) | our_rotary("Mixtral", config),
        sliding_window=config.get("sliding_window"),
        experts=experts,
    )


def _their_mixtral(config: DecoderConfig) -> dict[str, Any]:
    require_only("Mixtral", config, ROTARY | {"sliding_window", "experts"})
    experts = _experts("Mixtral", config)
    if not experts.renormalise:
        raise FamilyError("Mixtral models have experts.renormalise = True, but this one has False.")
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "sliding_window": config.sliding_window,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.chosen,
        **their_sizes(config),
        **their_rotary("Mixtral", config),
        "intermediate_size": experts.width,
    }


def _qwen3_moe(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _QWEN3_DEFAULTS)
    require("Qwen3-MoE", config, hidden_act="silu")
    if config["decoder_sparse_step"] != 1 or config.get("mlp_only_layers"):
        raise FamilyError(
            f"Qwen3-MoE: decoder_sparse_step is {config['decoder_sparse_step']} and mlp_only_layers "
            f"{config.get('mlp_only_layers') or []} in config.json, but only models whose layers all have experts "
            "(1 and []) can be imported."
        )
    experts = ExpertsConfig(
        # transformers 5 writes another name than it reads from early files.
        count=config.get("num_local_experts", config["num_experts"]),
        chosen=config["num_experts_per_tok"],
        width=config["moe_intermediate_size"],
        renormalise=config["norm_topk_prob"],
    )
    window = config.get("sliding_window") if config.get("use_sliding_window", False) else None
    return DecoderConfig(
        **our_sizes(config) | our_rotary("Qwen3-MoE", config),
        query_key_norm=True,
        attention_bias=config.get("attention_bias", False),
        sliding_window=window,
        experts=experts,
    )


def _their_qwen3_moe(config: DecoderConfig) -> dict[str, Any]:
    free = ROTARY | {"attention_bias", "sliding_window", "experts"}
    require_only("Qwen3-MoE", config, free, query_key_norm=True)
    experts = _experts("Qwen3-MoE", config)
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": experts.count,
        "num_experts_per_tok": experts.chosen,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.renormalise,
        **their_sizes(config),
        **their_rotary("Qwen3-MoE", config),
    }


def _experts(family: str, config: DecoderConfig) -> ExpertsConfig:
    if config.experts is None:
        raise FamilyError(f"{family} models have experts, but this one has none.")
    if config.experts.routing != "dropless":
        raise FamilyError(
            f"{family} models in transformers drop no token, but this one has experts.routing = "
            f"{config.experts.routing!r}: set it to 'dropless' to export."
        )
    return config.experts


MIXTRAL = Family("mixtral", ("mixtral",), _MIXTRAL_TABLE, _mixtral, _their_mixtral)
QWEN3_MOE = Family("qwen3_moe", ("qwen3_moe",), _QWEN3_TABLE, _qwen3_moe, _their_qwen3_moe)
