"""OpenFlamingo (https://arxiv.org/abs/2308.01390): what it trains beside an encoder and a decoder, in its own names.

Its checkpoints hold the resampler, the gated blocks and the token embedding; the tower and the language model, which it
never changes, come from folders of their own.
"""

import re

from mllm_jax.interop.families.family import FamilyError, require_ours
from mllm_jax.interop.families.parts import part_of_config
from mllm_jax.interop.rules import LINEAR, LINEAR_FROM_HEADS, Joined, Rule, Table
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.perceiver import PerceiverConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.vit import FeatureConfig, ViTConfig

TOKENS = ("<|endofchunk|>", "<image>")
"""What OpenFlamingo adds to a tokenizer, in this order, where it is not there; after it `<PAD>`, where nothing pads."""

EMBEDDING = "decoder/token_embedding/embedding"

_FEATURES = FeatureConfig(layer=-1, keep_class_token=False, post_norm=False)
"""The tokens that open_clip 2.16, with which the published models were trained, hands on beside the pooled one."""

_LANGUAGE_MODEL = "lang_encoder."

_ALSO_STORED = ("token_embedding/embedding", "position_embedding/embedding", "output/kernel")
"""Parameters of a decoder that its checkpoints may hold; the last two are frozen, and can be missing."""


def open_flamingo_table(config: MultimodalConfig) -> Table:
    """The table of what a checkpoint holds of a model; no rule covers the others of its parameters.

    Raises:
        FamilyError: the model is not one of OpenFlamingo's; the message says what differs.
    """
    connector = _gated(config)
    decoder = part_of_config(config.decoder.model_copy(update={"vocab_used": None})).table
    below = _LANGUAGE_MODEL + _blocks(decoder)
    kept = tuple(rule for rule in decoder.rules if rule.ours in _ALSO_STORED)
    return Table(
        rules=(
            *(rule.below("perceiver.", "connector/resampler/") for rule in _RESAMPLER),
            *(_placed(rule, below, connector) for rule in _GATED_BLOCK),
            *(rule.below(_LANGUAGE_MODEL, "decoder/") for rule in kept),
        ),
        renames=(
            (r"module\.", ""),
            (r"lang_encoder\.gated_cross_attn_layers\.(\d+)\.", rf"{below}\1.gated_cross_attn_layer."),
        ),
        ignored=(
            r"vision_encoder\..*",
            r"lang_encoder\.old_decoder_blocks\..*",
            re.escape(below) + r"\d+\.decoder_layer\..*",
            *(re.escape(_LANGUAGE_MODEL + rule.theirs) for rule in decoder.rules if "{layer}" not in rule.theirs),
            *(_LANGUAGE_MODEL + pattern for pattern in decoder.ignored),
        ),
        copies=Table((), copies=decoder.copies).below(_LANGUAGE_MODEL, "").copies,
    )


def _blocks(decoder: Table) -> str:
    """What stands before the number of a block in a decoder's names."""
    return next(rule.theirs.partition("{layer}")[0] for rule in decoder.rules if "{layer}" in rule.theirs)


def _placed(rule: Rule, below: str, connector: GatedCrossAttentionConfig) -> Rule:
    """A rule of the gated blocks, which their side numbers by the layers before which they stand."""
    theirs = f"{below}{{layer}}.gated_cross_attn_layer.{rule.theirs}"
    ours = f"decoder/cross_blocks/{rule.ours}"
    return Rule(theirs, ours, rule.layout, connector.first, connector.every, rule.joined)


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def _attention(theirs: str) -> tuple[Rule, ...]:
    """Keys and values come from one layer, the keys first."""
    return (
        Rule(f"{theirs}.to_q.weight", "attention/query/kernel", LINEAR),
        Rule(f"{theirs}.to_kv.weight", "attention/key/kernel", LINEAR, joined=Joined(0)),
        Rule(f"{theirs}.to_kv.weight", "attention/value/kernel", LINEAR, joined=Joined(1)),
        Rule(f"{theirs}.to_out.weight", "attention/output/kernel", LINEAR_FROM_HEADS),
    )


def _feed_forward(theirs: str) -> tuple[Rule, ...]:
    return (
        *_norm(f"{theirs}.0", "feed_forward_norm"),
        Rule(f"{theirs}.1.weight", "feed_forward/up/kernel", LINEAR),
        Rule(f"{theirs}.3.weight", "feed_forward/down/kernel", LINEAR),
    )


_RESAMPLER = (
    Rule("latents", "latents"),
    *_norm("norm", "final_norm"),
    *(
        rule.below("layers.{layer}.", "blocks/")
        for rule in (
            *_norm("0.norm_media", "media_norm"),
            *_norm("0.norm_latents", "latents_norm"),
            *_attention("0"),
            *_feed_forward("1"),
        )
    ),
)
_GATED_BLOCK = (
    Rule("attn_gate", "attention_gate"),
    Rule("ff_gate", "feed_forward_gate"),
    *_norm("attn.norm", "attention_norm"),
    *_attention("attn"),
    *_feed_forward("ff"),
)


def _gated(config: MultimodalConfig) -> GatedCrossAttentionConfig:
    """The connector of a model that is one of OpenFlamingo's."""
    connector = config.connector
    if not isinstance(connector, GatedCrossAttentionConfig) or connector.resampler is None:
        raise FamilyError(
            "OpenFlamingo models have a connector of kind 'gated_cross_attention' with a resampler, but this one has "
            "another: weights of a connector alone are read and written for them only."
        )
    if not isinstance(config.encoder, ViTConfig):
        raise FamilyError("OpenFlamingo models have one vision encoder, but this one has several side by side.")
    require_ours("OpenFlamingo", config.encoder, features=_FEATURES)
    _require_only(connector, GatedCrossAttentionConfig(first=connector.every - 1), config.decoder.width, _SIZES)
    _require_only(connector.resampler, PerceiverConfig(projection=False), config.encoder.width, _RESAMPLER_SIZES)
    return connector


_SIZES = frozenset({"resampler", "every", "heads", "head_width"})
_RESAMPLER_SIZES = frozenset({"latents", "layers", "heads", "head_width", "stack"})


def _require_only(
    ours: GatedCrossAttentionConfig | PerceiverConfig,
    theirs: GatedCrossAttentionConfig | PerceiverConfig,
    width: int,
    sizes: frozenset[str],
) -> None:
    """Raises FamilyError where ours differs from theirs in more than sizes; a default written out is no difference."""
    spelled = {"feed_forward_width": 4 * width, "kv_heads": ours.heads}
    expected = {
        name: getattr(ours, name) if getattr(ours, name) == spelled.get(name, value) else value
        for name, value in theirs
        if name not in sizes
    }
    require_ours("OpenFlamingo", ours, **expected)
