"""What the config mappings and weight tables of decoder families share."""

from collections.abc import Sequence
from typing import Any

from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig, require_ours
from mllm_jax.interop.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, Rule, Table
from mllm_jax.models.decoder import DecoderConfig

SIZES = frozenset(
    {
        "vocab_size",
        "width",
        "layers",
        "heads",
        "kv_heads",
        "head_width",
        "feed_forward_width",
        "norm_epsilon",
        "max_positions",
        "tied_embeddings",
        "stack",
    }
)
"""Fields that differ between the models of every family."""

ROTARY = frozenset({"rope_theta", "rope_scaling"})

BLOCK = "model.layers.{layer}."

EMBEDDINGS = (
    Rule("model.embed_tokens.weight", "token_embedding/embedding"),
    Rule("model.norm.weight", "final_norm/scale"),
    Rule("lm_head.weight", "output/kernel", LINEAR),
)
SEPARATE_ATTENTION = (
    Rule(BLOCK + "self_attn.q_proj.weight", "blocks/attention/query/kernel", LINEAR),
    Rule(BLOCK + "self_attn.q_proj.bias", "blocks/attention/query/bias", FLAT),
    Rule(BLOCK + "self_attn.k_proj.weight", "blocks/attention/key/kernel", LINEAR),
    Rule(BLOCK + "self_attn.k_proj.bias", "blocks/attention/key/bias", FLAT),
    Rule(BLOCK + "self_attn.v_proj.weight", "blocks/attention/value/kernel", LINEAR),
    Rule(BLOCK + "self_attn.v_proj.bias", "blocks/attention/value/bias", FLAT),
    Rule(BLOCK + "self_attn.q_norm.weight", "blocks/attention/query_norm/scale"),
    Rule(BLOCK + "self_attn.k_norm.weight", "blocks/attention/key_norm/scale"),
    Rule(BLOCK + "self_attn.o_proj.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS),
    Rule(BLOCK + "self_attn.o_proj.bias", "blocks/attention/output/bias"),
)
NORMS_BEFORE = (
    Rule(BLOCK + "input_layernorm.weight", "blocks/attention_norm/scale"),
    Rule(BLOCK + "post_attention_layernorm.weight", "blocks/feed_forward_norm/scale"),
)
NORMS_AROUND = (
    Rule(BLOCK + "input_layernorm.weight", "blocks/attention_norm/scale"),
    Rule(BLOCK + "post_attention_layernorm.weight", "blocks/attention_post_norm/scale"),
    Rule(BLOCK + "pre_feedforward_layernorm.weight", "blocks/feed_forward_norm/scale"),
    Rule(BLOCK + "post_feedforward_layernorm.weight", "blocks/feed_forward_post_norm/scale"),
)
SEPARATE_FEED_FORWARD = (
    Rule(BLOCK + "mlp.gate_proj.weight", "blocks/feed_forward/gate/kernel", LINEAR),
    Rule(BLOCK + "mlp.gate_proj.bias", "blocks/feed_forward/gate/bias"),
    Rule(BLOCK + "mlp.up_proj.weight", "blocks/feed_forward/up/kernel", LINEAR),
    Rule(BLOCK + "mlp.up_proj.bias", "blocks/feed_forward/up/bias"),
    Rule(BLOCK + "mlp.down_proj.weight", "blocks/feed_forward/down/kernel", LINEAR),
    Rule(BLOCK + "mlp.down_proj.bias", "blocks/feed_forward/down/bias"),
)


def decoder_table(*rules: Sequence[Rule]) -> Table:
    """The table of a family that calls its parts as LLaMA does."""
    return Table(
        rules=tuple(rule for part in (EMBEDDINGS, *rules) for rule in part),
        ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        copies=(("lm_head.weight", "model.embed_tokens.weight"),),
    )


DECODER_TABLE = decoder_table(NORMS_BEFORE, SEPARATE_ATTENTION, SEPARATE_FEED_FORWARD)
"""LLaMA's table; rules of biases and of norms of heads are left out for models without them."""


def with_defaults(config: HuggingFaceConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    """A config.json with what transformers takes for the keys that it leaves out, and without those that are null."""
    return {key: value for key, value in (defaults | dict(config)).items() if value is not None}


def our_sizes(config: HuggingFaceConfig) -> dict[str, Any]:
    """The fields of `SIZES`, from the keys that most families have."""
    heads = config["num_attention_heads"]
    return {
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads", heads),
        "head_width": config.get("head_dim", config["hidden_size"] // heads),
        "feed_forward_width": config["intermediate_size"],
        "norm_epsilon": config["rms_norm_eps"],
        "tied_embeddings": config.get("tie_word_embeddings", False),
        "max_positions": config["max_position_embeddings"],
    }


def their_sizes(config: DecoderConfig) -> dict[str, Any]:
    """The keys of `our_sizes`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
    }


def require_only(family: str, config: DecoderConfig, free: frozenset[str], **fixed: Any) -> None:
    """Checks that a model is one of a family: every field that is not `free` has its value in `fixed` or its default.

    Raises:
        FamilyError: naming the first field that differs.
    """
    expected = {name: field.default for name, field in DecoderConfig.model_fields.items()} | fixed
    require_ours(family, config, **{name: expected[name] for name in expected if name not in SIZES | free})


def our_pattern(flags: Sequence[bool]) -> tuple[bool, ...]:
    """The shortest pattern that, repeated, gives one flag a layer."""
    for length in range(1, len(flags)):
        if all(flag == flags[layer % length] for layer, flag in enumerate(flags)):
            return tuple(flags[:length])
    return tuple(flags)


def their_pattern(config: DecoderConfig, pattern: tuple[bool, ...]) -> list[bool]:
    """One flag a layer."""
    return [pattern[layer % len(pattern)] for layer in range(config.layers)]


def our_windows(family: str, config: HuggingFaceConfig, defaults: Sequence[bool]) -> dict[str, Any]:
    """`sliding_window` and `sliding_layers`.

    Args:
        family: for the error.
        config: with the keys `sliding_window` and, where the file has them, `layer_types`.
        defaults: which layers have the window where the file does not say.
    """
    kinds = config.get("layer_types")
    known = {"sliding_attention": True, "full_attention": False}
    unknown = sorted(set(kinds or ()) - known.keys())
    if unknown:
        raise FamilyError(f"{family}: layer_types has {unknown[0]!r}; {', '.join(known)} can be imported.")
    flags = [known[kind] for kind in kinds] if kinds else list(defaults)
    if len(flags) != config["num_hidden_layers"]:
        raise FamilyError(
            f"{family}: layer_types names {len(flags)} layers, but num_hidden_layers is {config['num_hidden_layers']}."
        )
    if not any(flags):
        return {}
    return {"sliding_window": config["sliding_window"], "sliding_layers": our_pattern(flags)}


def their_layer_types(config: DecoderConfig) -> list[str]:
    """`layer_types`, one entry a layer."""
    return ["full_attention" if kind.window is None else "sliding_attention" for kind in config.layer_kinds]
