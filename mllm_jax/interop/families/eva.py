"""EVA-CLIP's vision tower (https://arxiv.org/abs/2303.15389), as BLIP-2 and InstructBLIP hold it."""

from typing import Any

from mllm_jax.interop.families.blocks import EVA_BLOCKS, block_rules
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require
from mllm_jax.interop.families.vision import own_side, require_tower, shape_of, their_shape
from mllm_jax.interop.rules import CONVOLUTION, ONE_ROW, TWO_ROWS, Rule, Table
from mllm_jax.models.presets import CLIP_MEAN, CLIP_STD
from mllm_jax.models.vit import ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
"""What transformers takes for a key that a config.json leaves out."""

TABLE = Table(
    (
        Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", CONVOLUTION),
        Rule("embeddings.patch_embedding.bias", "patch_embedding/bias"),
        Rule("embeddings.class_embedding", "class_token", TWO_ROWS),
        Rule("embeddings.position_embedding", "position_embedding", ONE_ROW),
        Rule("post_layernorm.weight", "post_norm/scale"),
        Rule("post_layernorm.bias", "post_norm/bias"),
        *block_rules(EVA_BLOCKS),
    )
)


def from_hugging_face(config: HuggingFaceConfig) -> ViTConfig:
    """From a `Blip2VisionConfig`, or the `vision_config` of a whole model's."""
    config = _DEFAULTS | dict(config.get("vision_config", config))
    require("EVA", config, qkv_bias=True)
    return ViTConfig(
        **shape_of(config),
        feed_forward_width=config["intermediate_size"],
        pixel_mean=CLIP_MEAN,
        pixel_std=CLIP_STD,
    )


def to_hugging_face(config: ViTConfig) -> dict[str, Any]:
    """A `Blip2VisionConfig`."""
    require_tower("EVA", config)
    return {
        "architectures": ["Blip2VisionModel"],
        "model_type": "blip_2_vision_model",
        "intermediate_size": config.feed_forward_width,
        "qkv_bias": True,
        **their_shape(config, own_side(config, "EVA")),
    }


EVA = Family("eva", ("blip_2_vision_model", "instructblip_vision_model"), TABLE, from_hugging_face, to_hugging_face)
