"""OPT (https://arxiv.org/abs/2205.01068)."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import require_only, with_defaults
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require, require_ours
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, our_activation
from mllm_jax.interop.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, Rule, Table
from mllm_jax.models.decoder import DecoderConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "enable_bias": True,
    "tie_word_embeddings": True,
}
"""What transformers takes for a key that a config.json leaves out."""

_ALWAYS: dict[str, Any] = {"norm": "layer", "positions": "learned", "position_offset": 2, "feed_forward": "plain"}
_EPSILON = 1e-5

_BLOCK = "model.decoder.layers.{layer}."

_TABLE = Table(
    rules=(
        Rule("model.decoder.embed_tokens.weight", "token_embedding/embedding"),
        Rule("model.decoder.embed_positions.weight", "position_embedding/embedding"),
        Rule("model.decoder.final_layer_norm.weight", "final_norm/scale"),
        Rule("model.decoder.final_layer_norm.bias", "final_norm/bias"),
        Rule("lm_head.weight", "output/kernel", LINEAR),
        Rule(_BLOCK + "self_attn_layer_norm.weight", "blocks/attention_norm/scale"),
        Rule(_BLOCK + "self_attn_layer_norm.bias", "blocks/attention_norm/bias"),
        Rule(_BLOCK + "self_attn.q_proj.weight", "blocks/attention/query/kernel", LINEAR),
        Rule(_BLOCK + "self_attn.q_proj.bias", "blocks/attention/query/bias", FLAT),
        Rule(_BLOCK + "self_attn.k_proj.weight", "blocks/attention/key/kernel", LINEAR),
        Rule(_BLOCK + "self_attn.k_proj.bias", "blocks/attention/key/bias", FLAT),
        Rule(_BLOCK + "self_attn.v_proj.weight", "blocks/attention/value/kernel", LINEAR),
        Rule(_BLOCK + "self_attn.v_proj.bias", "blocks/attention/value/bias", FLAT),
        Rule(_BLOCK + "self_attn.out_proj.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS),
        Rule(_BLOCK + "self_attn.out_proj.bias", "blocks/attention/output/bias"),
        Rule(_BLOCK + "final_layer_norm.weight", "blocks/feed_forward_norm/scale"),
        Rule(_BLOCK + "final_layer_norm.bias", "blocks/feed_forward_norm/bias"),
        Rule(_BLOCK + "fc1.weight", "blocks/feed_forward/up/kernel", LINEAR),
        Rule(_BLOCK + "fc1.bias", "blocks/feed_forward/up/bias"),
        Rule(_BLOCK + "fc2.weight", "blocks/feed_forward/down/kernel", LINEAR),
        Rule(_BLOCK + "fc2.bias", "blocks/feed_forward/down/bias"),
    ),
    renames=((r"(?=decoder\.)", "model."),),
    copies=(("lm_head.weight", "model.decoder.embed_tokens.weight"),),
)


def _opt(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    require(
        "OPT", config, do_layer_norm_before=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False
    )
    if config.get("word_embed_proj_dim", width) != width:
        raise FamilyError(
            f"OPT: word_embed_proj_dim is {config['word_embed_proj_dim']} in config.json and hidden_size {width}, but "
            "a model whose token embeddings are projected to its width (OPT-350M) cannot be imported."
        )
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        width=width,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        feed_forward_width=config["ffn_dim"],
        norm_epsilon=_EPSILON,
        max_positions=config["max_position_embeddings"],
        tied_embeddings=config["tie_word_embeddings"],
        activation=our_activation(config["activation_function"]),
        attention_bias=config["enable_bias"],
        feed_forward_bias=config["enable_bias"],
        **_ALWAYS,
    )


def _their_opt(config: DecoderConfig) -> dict[str, Any]:
    require_only("OPT", config, frozenset({"activation", "attention_bias", "feed_forward_bias"}), **_ALWAYS)
    require_ours(
        "OPT",
        config,
        norm_epsilon=_EPSILON,
        kv_heads=config.heads,
        head_width=config.width // config.heads,
        feed_forward_bias=config.attention_bias,
    )
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "num_hidden_layers": config.layers,
        "ffn_dim": config.feed_forward_width,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_positions,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "enable_bias": config.attention_bias,
        "tie_word_embeddings": config.tied_embeddings,
    }


OPT = Family("opt", ("opt",), _TABLE, _opt, _their_opt)
