"""The weight rules of a vision transformer's blocks, in the spellings that libraries have for them."""

from dataclasses import dataclass, replace

from mllm_jax.interop.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, Joined, Rule


@dataclass(frozen=True)
class BlockNames:
    """How a library calls the parts of a block, below the block itself."""

    block: str
    """The block; `{layer}` stands for its number."""
    attention_norm: str
    query: str
    """The same name as key and value where one layer makes all three, end to end."""
    key: str
    value: str
    output: str
    feed_forward_norm: str
    up: str
    down: str
    gate: str | None = None
    """Of a gated feed-forward; the same name as `up` where one layer makes both, the gate first."""
    attention_scale: str | None = None
    """The tensor that scales the attention branch (LayerScale), where there is one."""
    feed_forward_scale: str | None = None


CLIP_BLOCKS = BlockNames(
    block="vision_model.encoder.layers.{layer}.",
    attention_norm="layer_norm1",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    feed_forward_norm="layer_norm2",
    up="mlp.fc1",
    down="mlp.fc2",
)
"""CLIP's, which SigLIP has too."""

DINOV2_BLOCKS = BlockNames(
    block="encoder.layer.{layer}.",
    attention_norm="norm1",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    output="attention.output.dense",
    feed_forward_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    attention_scale="layer_scale1.lambda1",
    feed_forward_scale="layer_scale2.lambda1",
)

GATED_DINOV2_BLOCKS = replace(DINOV2_BLOCKS, gate="mlp.weights_in", up="mlp.weights_in", down="mlp.weights_out")

INTERNVL_BLOCKS = BlockNames(
    block="encoder.layer.{layer}.",
    attention_norm="layernorm_before",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    output="attention.projection_layer",
    feed_forward_norm="layernorm_after",
    up="mlp.fc1",
    down="mlp.fc2",
    attention_scale="lambda_1",
    feed_forward_scale="lambda_2",
)

EVA_BLOCKS = replace(
    CLIP_BLOCKS,
    block="encoder.layers.{layer}.",
    query="self_attn.qkv",
    key="self_attn.qkv",
    value="self_attn.qkv",
    output="self_attn.projection",
)

OPEN_CLIP_BLOCKS = BlockNames(
    block="visual.transformer.resblocks.{layer}.",
    attention_norm="ln_1",
    query="attn.in_proj",
    key="attn.in_proj",
    value="attn.in_proj",
    output="attn.out_proj",
    feed_forward_norm="ln_2",
    up="mlp.c_fc",
    down="mlp.c_proj",
)


def block_rules(names: BlockNames) -> tuple[Rule, ...]:
    """The rules of all blocks; those of a parameter that a model does not have are left out for that model."""
    block = names.block
    rules: list[Rule] = []
    for theirs, ours in ((names.attention_norm, "attention_norm"), (names.feed_forward_norm, "feed_forward_norm")):
        rules.append(Rule(f"{block}{theirs}.weight", f"blocks/{ours}/scale"))
        rules.append(Rule(f"{block}{theirs}.bias", f"blocks/{ours}/bias"))
    for place, (theirs, ours) in enumerate(((names.query, "query"), (names.key, "key"), (names.value, "value"))):
        joined = Joined(place) if names.query == names.key else None
        rules.append(Rule(f"{block}{theirs}.weight", f"blocks/attention/{ours}/kernel", LINEAR, joined=joined))
        rules.append(Rule(f"{block}{theirs}.bias", f"blocks/attention/{ours}/bias", FLAT, joined=joined))
    rules.append(Rule(f"{block}{names.output}.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS))
    rules.append(Rule(f"{block}{names.output}.bias", "blocks/attention/output/bias"))
    for place, (layer, ours) in enumerate(((names.gate, "gate"), (names.up, "up"), (names.down, "down"))):
        joined = Joined(place) if names.gate == names.up and ours != "down" else None
        if layer is not None:
            rules.append(Rule(f"{block}{layer}.weight", f"blocks/feed_forward/{ours}/kernel", LINEAR, joined=joined))
            rules.append(Rule(f"{block}{layer}.bias", f"blocks/feed_forward/{ours}/bias", joined=joined))
    for scale, ours in ((names.attention_scale, "attention_scale"), (names.feed_forward_scale, "feed_forward_scale")):
        if scale is not None:
            rules.append(Rule(f"{block}{scale}", f"blocks/{ours}"))
    return tuple(rules)
