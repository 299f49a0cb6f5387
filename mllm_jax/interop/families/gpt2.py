"""GPT-2, whose matrices are stored [in, out] and whose queries, keys and values lie in one tensor."""

from typing import Any

from mllm_jax.interop.families.decoder_keys import require_only, with_defaults
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require, require_ours
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, our_activation
from mllm_jax.interop.rules import (
    FLAT,
    INPUTS_FIRST,
    INPUTS_FIRST_FROM_HEADS,
    LINEAR,
    Joined,
    Rule,
    Table,
)
from mllm_jax.models.decoder import DecoderConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
"""What transformers takes for a key that a config.json leaves out."""

_ALWAYS: dict[str, Any] = {
    "norm": "layer",
    "positions": "learned",
    "feed_forward": "plain",
    "attention_bias": True,
    "feed_forward_bias": True,
}

_NAMES = ACTIVATION_NAMES | {"gelu_tanh": "gelu_new"}
"""GPT-2's approximation of GELU has a name, and a rounding, of its own."""

_BLOCK = "transformer.h.{layer}."
_HEADS = tuple(enumerate(("query", "key", "value")))

_TABLE = Table(
    rules=(
        Rule("transformer.wte.weight", "token_embedding/embedding"),
        Rule("transformer.wpe.weight", "position_embedding/embedding"),
        Rule("transformer.ln_f.weight", "final_norm/scale"),
        Rule("transformer.ln_f.bias", "final_norm/bias"),
        Rule("lm_head.weight", "output/kernel", LINEAR),
        Rule(_BLOCK + "ln_1.weight", "blocks/attention_norm/scale"),
        Rule(_BLOCK + "ln_1.bias", "blocks/attention_norm/bias"),
        *(
            Rule(
                _BLOCK + "attn.c_attn.weight", f"blocks/attention/{part}/kernel", INPUTS_FIRST, joined=Joined(place, 1)
            )
            for place, part in _HEADS
        ),
        *(
            Rule(_BLOCK + "attn.c_attn.bias", f"blocks/attention/{part}/bias", FLAT, joined=Joined(place))
            for place, part in _HEADS
        ),
        Rule(_BLOCK + "attn.c_proj.weight", "blocks/attention/output/kernel", INPUTS_FIRST_FROM_HEADS),
        Rule(_BLOCK + "attn.c_proj.bias", "blocks/attention/output/bias"),
        Rule(_BLOCK + "ln_2.weight", "blocks/feed_forward_norm/scale"),
        Rule(_BLOCK + "ln_2.bias", "blocks/feed_forward_norm/bias"),
        Rule(_BLOCK + "mlp.c_fc.weight", "blocks/feed_forward/up/kernel"),
        Rule(_BLOCK + "mlp.c_fc.bias", "blocks/feed_forward/up/bias"),
        Rule(_BLOCK + "mlp.c_proj.weight", "blocks/feed_forward/down/kernel"),
        Rule(_BLOCK + "mlp.c_proj.bias", "blocks/feed_forward/down/bias"),
    ),
    renames=((r"(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
)


def _gpt2(config: HuggingFaceConfig) -> DecoderConfig:
    config = with_defaults(config, _DEFAULTS)
    require("GPT-2", config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, heads = config["n_embd"], config["n_head"]
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        width=width,
        layers=config["n_layer"],
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        feed_forward_width=config.get("n_inner", 4 * width),
        norm_epsilon=config["layer_norm_epsilon"],
        max_positions=config["n_positions"],
        tied_embeddings=config["tie_word_embeddings"],
        activation=our_activation(config["activation_function"]),
        **_ALWAYS,
    )


def _their_gpt2(config: DecoderConfig) -> dict[str, Any]:
    require_only("GPT-2", config, frozenset({"activation"}), **_ALWAYS)
    require_ours("GPT-2", config, kv_heads=config.heads, head_width=config.width // config.heads)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.feed_forward_width,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": _NAMES[config.activation],
        "tie_word_embeddings": config.tied_embeddings,
    }


GPT2 = Family("gpt2", ("gpt2",), _TABLE, _gpt2, _their_gpt2)
