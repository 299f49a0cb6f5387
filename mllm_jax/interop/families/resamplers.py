"""Connectors with learned queries, in transformers' terms: config mappings and weight rules for whole families."""

from typing import Any

from mllm_jax.interop.families.family import HuggingFaceConfig, require
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, our_activation
from mllm_jax.interop.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, ONE_ROW, Rule
from mllm_jax.models.connectors.perceiver import PerceiverConfig
from mllm_jax.models.connectors.q_former import QFormerConfig, QFormerTextConfig

_ATTENTION = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))

_IDEFICS_BLOCK = "perceiver_resampler.blocks.{layer}."

IDEFICS_PERCEIVER_RULES = (
    Rule("perceiver_resampler.latents", "latents"),
    Rule("perceiver_resampler.layer_norm.weight", "final_norm/scale"),
    Rule("perceiver_resampler.layer_norm.bias", "final_norm/bias"),
    *(
        rule
        for theirs, ours in (
            ("0.context_layer_norm", "media_norm"),
            ("0.latents_layer_norm", "latents_norm"),
            ("0.q_layer_norm", "attention/query_norm"),
            ("0.k_layer_norm", "attention/key_norm"),
            ("1.ln", "feed_forward_norm"),
        )
        for rule in (
            Rule(f"{_IDEFICS_BLOCK}{theirs}.weight", f"blocks/{ours}/scale"),
            Rule(f"{_IDEFICS_BLOCK}{theirs}.bias", f"blocks/{ours}/bias"),
        )
    ),
    *(
        Rule(f"{_IDEFICS_BLOCK}0.{theirs}.weight", f"blocks/attention/{ours}/kernel", LINEAR)
        for theirs, ours in _ATTENTION
    ),
    Rule(_IDEFICS_BLOCK + "0.output_proj.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS),
    Rule(_IDEFICS_BLOCK + "1.fc.weight", "blocks/feed_forward/up/kernel", LINEAR),
    Rule(_IDEFICS_BLOCK + "1.c_proj.weight", "blocks/feed_forward/down/kernel", LINEAR),
)

_IDEFICS2_BLOCK = "perceiver_resampler.layers.{layer}."

IDEFICS2_PERCEIVER_RULES = (
    Rule("perceiver_resampler.latents", "latents"),
    Rule("perceiver_resampler.norm.weight", "final_norm/scale"),
    Rule(_IDEFICS2_BLOCK + "input_context_norm.weight", "blocks/media_norm/scale"),
    Rule(_IDEFICS2_BLOCK + "input_latents_norm.weight", "blocks/latents_norm/scale"),
    Rule(_IDEFICS2_BLOCK + "post_attention_layernorm.weight", "blocks/feed_forward_norm/scale"),
    *(
        Rule(f"{_IDEFICS2_BLOCK}self_attn.{theirs}.weight", f"blocks/attention/{ours}/kernel", LINEAR)
        for theirs, ours in _ATTENTION
    ),
    Rule(_IDEFICS2_BLOCK + "self_attn.o_proj.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS),
    *(
        Rule(f"{_IDEFICS2_BLOCK}mlp.{name}_proj.weight", f"blocks/feed_forward/{name}/kernel", LINEAR)
        for name in ("gate", "up", "down")
    ),
)


def idefics_perceiver(config: HuggingFaceConfig) -> PerceiverConfig:
    """From the `perceiver_config` of an Idefics model."""
    return PerceiverConfig(
        latents=config.get("resampler_n_latents", 64),
        layers=config.get("resampler_depth", 6),
        heads=config.get("resampler_n_heads", 16),
        head_width=config.get("resampler_head_dim", 96),
        head_norm="layer" if config.get("qk_layer_norms_perceiver", False) else None,
        activation="relu",
        projection=False,
    )


def their_idefics_perceiver(config: PerceiverConfig) -> dict[str, Any]:
    """The `perceiver_config` of an Idefics model; whether it says all of ours is for the caller to compare."""
    return {
        "model_type": "idefics_perciever",
        "use_resampler": True,
        "resampler_n_latents": config.latents,
        "resampler_depth": config.layers,
        "resampler_n_heads": config.heads,
        "resampler_head_dim": config.head_width,
        "qk_layer_norms_perceiver": config.head_norm is not None,
    }


def idefics2_perceiver(config: HuggingFaceConfig) -> PerceiverConfig:
    """From an `Idefics2PerceiverConfig`."""
    return PerceiverConfig(
        latents=config.get("resampler_n_latents", 64),
        layers=config.get("resampler_depth", 3),
        heads=config.get("resampler_n_heads", 16),
        kv_heads=config.get("num_key_value_heads", 4),
        head_width=config.get("resampler_head_dim", 96),
        feed_forward="gated",
        activation=our_activation(config.get("hidden_act", "silu")),
        norm="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        projection=False,
    )


def their_idefics2_perceiver(config: PerceiverConfig, width: int) -> dict[str, Any]:
    """An `Idefics2PerceiverConfig` of this width; whether it says all of ours is for the caller to compare."""
    return {
        "model_type": "idefics2_perceiver",
        "hidden_size": width,
        "resampler_n_latents": config.latents,
        "resampler_depth": config.layers,
        "resampler_n_heads": config.heads,
        "resampler_head_dim": config.head_width,
        "num_key_value_heads": config.kv_heads or config.heads,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "rms_norm_eps": config.norm_epsilon,
    }


_Q_FORMER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
"""What transformers takes for a key that a config.json leaves out."""


def q_former(config: HuggingFaceConfig, queries: int, *, reads_text: bool = False) -> QFormerConfig:
    """From a `qformer_config` and the `num_query_tokens` beside it; `reads_text` for InstructBLIP's.

    An instruction may be as long as the positions are many: it is for the tokenizer's files to say less.
    """
    config = _Q_FORMER_DEFAULTS | dict(config)
    text = None
    if reads_text:
        positions = config["max_position_embeddings"]
        text = QFormerTextConfig(vocab_size=config["vocab_size"], max_positions=positions, instruction_tokens=positions)
    else:
        require("BLIP-2", config, use_qformer_text_input=False)
    return QFormerConfig(
        queries=queries,
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        feed_forward_width=config["intermediate_size"],
        cross_attention_every=config["cross_attention_frequency"],
        activation=our_activation(config["hidden_act"]),
        norm_epsilon=config["layer_norm_eps"],
        text=text,
    )


def their_q_former(config: QFormerConfig, features_width: int) -> dict[str, Any]:
    """A `qformer_config`; `features_width` is the encoder's."""
    if config.text is None:
        own: dict[str, Any] = {"model_type": "blip_2_qformer", "use_qformer_text_input": False}
    else:
        own = {
            "model_type": "instructblip_qformer",
            "vocab_size": config.text.vocab_size,
            "max_position_embeddings": config.text.max_positions,
        }
    return {
        **own,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "layer_norm_eps": config.norm_epsilon,
        "cross_attention_frequency": config.cross_attention_every,
        "encoder_hidden_size": features_width,
    }


def q_former_rules(every: int, *, reads_text: bool = False) -> tuple[Rule, ...]:
    """The rules of a Q-Former of which one layer in `every` reads the image's features.

    `reads_text` is for the names in InstructBLIP's files.
    """
    norm = "qformer.embeddings.layernorm" if reads_text else "qformer.layernorm"
    rules = [
        Rule("query_tokens", "queries", ONE_ROW),
        Rule(f"{norm}.weight", "query_norm/scale"),
        Rule(f"{norm}.bias", "query_norm/bias"),
        Rule("qformer.embeddings.word_embeddings.weight", "token_embedding/embedding"),
        Rule("qformer.embeddings.position_embeddings.weight", "position_embedding/embedding"),
        Rule("language_projection.weight", "projection/kernel", LINEAR),
        Rule("language_projection.bias", "projection/bias"),
    ]
    for place in range(every):
        rules += _layer_rules(place, every)
    return tuple(rules)


def _layer_rules(place: int, every: int) -> list[Rule]:
    theirs, ours = "qformer.encoder.layer.{layer}.", f"blocks/layer_{place}/"
    rules = []
    for side, name in (("_query", "feed_forward"), ("", "text_feed_forward")):
        rules += [
            Rule(f"{theirs}intermediate{side}.dense.weight", f"{ours}{name}/up/kernel", LINEAR, place, every),
            Rule(f"{theirs}intermediate{side}.dense.bias", f"{ours}{name}/up/bias", FLAT, place, every),
            Rule(f"{theirs}output{side}.dense.weight", f"{ours}{name}/down/kernel", LINEAR, place, every),
            Rule(f"{theirs}output{side}.dense.bias", f"{ours}{name}/down/bias", FLAT, place, every),
        ]
    for their_norm, our_norm in (
        ("attention.output", "attention_norm"),
        ("crossattention.output", "cross_attention_norm"),
        ("output_query", "feed_forward_norm"),
        ("output", "text_feed_forward_norm"),
    ):
        rules += [
            Rule(f"{theirs}{their_norm}.LayerNorm.weight", f"{ours}{our_norm}/scale", FLAT, place, every),
            Rule(f"{theirs}{their_norm}.LayerNorm.bias", f"{ours}{our_norm}/bias", FLAT, place, every),
        ]
    for their_attention, our_attention in (("attention", "attention"), ("crossattention", "cross_attention")):
        start, end = f"{theirs}{their_attention}", f"{ours}{our_attention}"
        for name in ("query", "key", "value"):
            rules += [
                Rule(f"{start}.attention.{name}.weight", f"{end}/{name}/kernel", LINEAR, place, every),
                Rule(f"{start}.attention.{name}.bias", f"{end}/{name}/bias", FLAT, place, every),
            ]
        rules += [
            Rule(f"{start}.output.dense.weight", f"{end}/output/kernel", LINEAR_FROM_HEADS, place, every),
            Rule(f"{start}.output.dense.bias", f"{end}/output/bias", FLAT, place, every),
        ]
    return rules
