"""LLaMA 1 to 3 and the models that share its architecture under its name (Vicuna, SmolLM2)."""

from typing import Any

from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require
from mllm_jax.interop.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, Rule, Table
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.rotary_scaling import Llama3RotaryScaling

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

_BLOCK = "model.layers.{layer}."

TABLE = Table(
    rules=(
        Rule("model.embed_tokens.weight", "token_embedding/embedding"),
        Rule("model.norm.weight", "final_norm/scale"),
        Rule("lm_head.weight", "output/kernel", LINEAR),
        Rule(_BLOCK + "input_layernorm.weight", "blocks/attention_norm/scale"),
        Rule(_BLOCK + "self_attn.q_proj.weight", "blocks/attention/query/kernel", LINEAR),
        Rule(_BLOCK + "self_attn.q_proj.bias", "blocks/attention/query/bias", FLAT),
        Rule(_BLOCK + "self_attn.k_proj.weight", "blocks/attention/key/kernel", LINEAR),
        Rule(_BLOCK + "self_attn.k_proj.bias", "blocks/attention/key/bias", FLAT),
        Rule(_BLOCK + "self_attn.v_proj.weight", "blocks/attention/value/kernel", LINEAR),
        Rule(_BLOCK + "self_attn.v_proj.bias", "blocks/attention/value/bias", FLAT),
        Rule(_BLOCK + "self_attn.o_proj.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS),
        Rule(_BLOCK + "self_attn.o_proj.bias", "blocks/attention/output/bias"),
        Rule(_BLOCK + "post_attention_layernorm.weight", "blocks/feed_forward_norm/scale"),
        Rule(_BLOCK + "mlp.gate_proj.weight", "blocks/feed_forward/gate/kernel", LINEAR),
        Rule(_BLOCK + "mlp.gate_proj.bias", "blocks/feed_forward/gate/bias"),
        Rule(_BLOCK + "mlp.up_proj.weight", "blocks/feed_forward/up/kernel", LINEAR),
        Rule(_BLOCK + "mlp.up_proj.bias", "blocks/feed_forward/up/bias"),
        Rule(_BLOCK + "mlp.down_proj.weight", "blocks/feed_forward/down/kernel", LINEAR),
        Rule(_BLOCK + "mlp.down_proj.bias", "blocks/feed_forward/down/bias"),
    ),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    copies=(("lm_head.weight", "model.embed_tokens.weight"),),
)


def from_hugging_face(config: HuggingFaceConfig) -> DecoderConfig:
    given: dict[str, Any] = {key: value for key, value in config.items() if value is not None}
    config = _DEFAULTS | given
    require("LLaMA", config, hidden_act="silu")
    heads = config["num_attention_heads"]
    theta, scaling = _rotary(config)
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_width=config.get("head_dim", config["hidden_size"] // heads),
        feed_forward_width=config["intermediate_size"],
        norm_epsilon=config["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=config.get("tie_word_embeddings", False),
        max_positions=config["max_position_embeddings"],
        attention_bias=config.get("attention_bias", False),
        feed_forward_bias=config.get("mlp_bias", False),
    )


def _rotary(config: HuggingFaceConfig) -> tuple[float, Llama3RotaryScaling | None]:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta: float = rope["rope_theta"] if "rope_theta" in rope else config["rope_theta"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise FamilyError(f"LLaMA: rope_type is {kind!r} in config.json, but only 'default' and 'llama3' are known.")
    return theta, Llama3RotaryScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_positions=rope["original_max_position_embeddings"],
    )


def to_hugging_face(config: DecoderConfig) -> dict[str, Any]:
    """A `LlamaConfig`, in the keys that transformers 4 and 5 both read."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions,
        },
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "tie_word_embeddings": config.tied_embeddings,
    }


LLAMA = Family("llama", ("llama",), TABLE, from_hugging_face, to_hugging_face)
