"""InternViT, the vision tower of InternVL (https://arxiv.org/abs/2312.14238), in its 300M form."""

from typing import Any

from mllm_jax.interop.families.blocks import INTERNVL_BLOCKS, block_rules
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require
from mllm_jax.interop.families.vision import require_tower, shape_of, table_side, their_shape
from mllm_jax.interop.rules import CONVOLUTION, ONE_ROW, TWO_ROWS, Rule, Table
from mllm_jax.models.presets import IMAGENET_MEAN, IMAGENET_STD
from mllm_jax.models.vit import ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": (448, 448),
    "patch_size": (14, 14),
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
"""What transformers takes for a key that a config.json leaves out."""

TABLE = Table(
    rules=(
        Rule("embeddings.patch_embeddings.projection.weight", "patch_embedding/kernel", CONVOLUTION),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embedding/bias"),
        Rule("embeddings.cls_token", "class_token", TWO_ROWS),
        Rule("embeddings.position_embeddings", "position_embedding", ONE_ROW),
        *block_rules(INTERNVL_BLOCKS),
    ),
    ignored=(r"embeddings\.mask_token",),
)


def from_hugging_face(config: HuggingFaceConfig) -> ViTConfig:
    """From an `InternVLVisionConfig`."""
    config = _DEFAULTS | dict(config)
    fixed = {"num_channels": 3, "norm_type": "layer_norm", "use_qk_norm": False, "use_mean_pooling": True}
    require("InternVL", config, **fixed, use_absolute_position_embeddings=True)
    return ViTConfig(
        **shape_of(config),
        feed_forward_width=config["intermediate_size"],
        attention_bias=config.get("attention_bias", False),
        final_norm=False,
        layer_scale=True,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
    )


def to_hugging_face(config: ViTConfig) -> dict[str, Any]:
    """An `InternVLVisionConfig`; `image_size` is that of the position table."""
    require_tower("InternVL", config, ("attention_bias",), final_norm=False, layer_scale=True)
    side = table_side(config, "InternVL")
    return {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        "intermediate_size": config.feed_forward_width,
        **their_shape(config, side),
        "image_size": [side, side],
        "patch_size": [config.patch_size, config.patch_size],
        "attention_bias": config.attention_bias,
        "use_mean_pooling": True,
        "use_mask_token": False,
    }


INTERNVIT = Family("internvit", ("internvl_vision",), TABLE, from_hugging_face, to_hugging_face)
