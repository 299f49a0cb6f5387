"""DINOv2 (https://arxiv.org/abs/2304.07193), with or without registers."""

from math import isqrt
from typing import Any

from mllm_jax.interop.families.blocks import DINOV2_BLOCKS, GATED_DINOV2_BLOCKS, BlockNames, block_rules
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require
from mllm_jax.interop.families.vision import require_tower, shape_of, table_side, their_shape
from mllm_jax.interop.rules import CONVOLUTION, ONE_ROW, TWO_ROWS, Rule, Table
from mllm_jax.models.layers.feed_forward import FeedForwardName
from mllm_jax.models.presets import IMAGENET_MEAN, IMAGENET_STD
from mllm_jax.models.vit import ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "mlp_ratio": 4,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
"""What transformers takes for a key that a config.json leaves out."""

_DEFAULT_PATCH = {"dinov2": 14, "dinov2_with_registers": 16}


def _table(names: BlockNames) -> Table:
    return Table(
        rules=(
            Rule("embeddings.patch_embeddings.projection.weight", "patch_embedding/kernel", CONVOLUTION),
            Rule("embeddings.patch_embeddings.projection.bias", "patch_embedding/bias"),
            Rule("embeddings.cls_token", "class_token", TWO_ROWS),
            Rule("embeddings.register_tokens", "registers", ONE_ROW),
            Rule("embeddings.position_embeddings", "position_embedding", ONE_ROW),
            Rule("layernorm.weight", "post_norm/scale"),
            Rule("layernorm.bias", "post_norm/bias"),
            *block_rules(names),
        ),
        renames=((r"dinov2(_with_registers)?\.", ""),),
        # The mask token serves pre-training alone; the classifier is a probe on top.
        ignored=(r"embeddings\.mask_token", r"classifier\.(weight|bias)"),
    )


def _is_gated(config: HuggingFaceConfig) -> bool:
    return bool(config.get("use_swiglu_ffn", False))


def from_hugging_face(config: HuggingFaceConfig) -> ViTConfig:
    config = _DEFAULTS | {"patch_size": _DEFAULT_PATCH[config.get("model_type", "dinov2")]} | dict(config)
    require("DINOv2", config, num_channels=3, qkv_bias=True)
    with_registers = config["model_type"] == "dinov2_with_registers"
    shape = shape_of(config)
    gated = _is_gated(config)
    return ViTConfig(
        **shape | ({"activation": "silu", "feed_forward": "gated"} if gated else {}),
        feed_forward_width=_feed_forward_width(config["hidden_size"], config["mlp_ratio"], gated),
        registers=config.get("num_register_tokens", 4) if with_registers else 0,
        layer_scale=True,
        position_grid=_square_table(shape["image_size"], shape["patch_size"]),
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
    )


def _square_table(size: tuple[int, int], patch: int) -> tuple[int, int] | None:
    """transformers reads every table as a square one and resizes it where the image is not square."""
    if size[0] == size[1]:
        return None
    patches = (size[0] // patch) * (size[1] // patch)
    side = isqrt(patches)
    if side * side != patches:
        raise FamilyError(
            f"DINOv2: image_size {size} with patches of {patch} pixels gives {patches} positions, which transformers "
            "cannot lay out as a square table."
        )
    return side, side


def _feed_forward_width(width: int, ratio: float, gated: bool) -> int:
    """A gated feed-forward has two thirds of the width, so that it has as many parameters, in multiples of eight."""
    inner = int(width * ratio)
    return (inner * 2 // 3 + 7) // 8 * 8 if gated else inner


def _ratio(config: ViTConfig) -> int:
    for ratio in range(1, 9):
        if _feed_forward_width(config.width, ratio, config.feed_forward == "gated") == config.feed_forward_width:
            return ratio
    raise FamilyError(
        f"DINOv2 models have a feed_forward_width that is a multiple of width (two thirds of it where gated), but this "
        f"one has {config.feed_forward_width} and {config.width}."
    )


def _to_hugging_face(config: ViTConfig, feed_forward: FeedForwardName) -> dict[str, Any]:
    """A `Dinov2Config`, or a `Dinov2WithRegistersConfig`; `image_size` is that of the position table."""
    gated = feed_forward == "gated"
    activation = {"activation": "silu"} if gated else {}
    require_tower("DINOv2", config, ("registers",), layer_scale=True, feed_forward=feed_forward, **activation)
    name = "Dinov2WithRegistersModel" if config.registers else "Dinov2Model"
    registers = {"num_register_tokens": config.registers} if config.registers else {"use_mask_token": False}
    return {
        "architectures": [name],
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "mlp_ratio": _ratio(config),
        **their_shape(config, table_side(config, "DINOv2")),
        "qkv_bias": True,
        "use_swiglu_ffn": gated,
        **registers,
    }


def _family(name: str, names: BlockNames, feed_forward: FeedForwardName) -> Family[ViTConfig]:
    return Family(
        name=name,
        model_types=("dinov2", "dinov2_with_registers"),
        table=_table(names),
        from_hugging_face=from_hugging_face,
        to_hugging_face=lambda config: _to_hugging_face(config, feed_forward),
        accepts=lambda config: _is_gated(config) == (feed_forward == "gated"),
    )


DINOV2 = _family("dinov2", DINOV2_BLOCKS, "plain")
GATED_DINOV2 = _family("dinov2_gated", GATED_DINOV2_BLOCKS, "gated")
"""The giant one."""
