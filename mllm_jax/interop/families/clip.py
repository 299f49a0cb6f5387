"""CLIP's vision tower (https://arxiv.org/abs/2103.00020)."""

from typing import Any

from mllm_jax.interop.families.blocks import CLIP_BLOCKS, block_rules
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require
from mllm_jax.interop.families.vision import own_side, require_tower, shape_of, their_shape
from mllm_jax.interop.rules import CONVOLUTION, Rule, Table
from mllm_jax.models.presets import CLIP_MEAN, CLIP_STD
from mllm_jax.models.vit import ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What transformers takes for a key that a config.json leaves out."""

WITHOUT_PREFIX = (r"(?=(embeddings|pre_layrnorm|encoder|post_layernorm|head)\.)", "vision_model.")
"""A tower saved alone by transformers 5 leaves the prefix out; every version reads it with the prefix."""

TABLE = Table(
    rules=(
        Rule("vision_model.embeddings.patch_embedding.weight", "patch_embedding/kernel", CONVOLUTION),
        Rule("vision_model.embeddings.class_embedding", "class_token"),
        Rule("vision_model.embeddings.position_embedding.weight", "position_embedding"),
        # The misspelling is theirs.
        Rule("vision_model.pre_layrnorm.weight", "pre_norm/scale"),
        Rule("vision_model.pre_layrnorm.bias", "pre_norm/bias"),
        Rule("vision_model.post_layernorm.weight", "post_norm/scale"),
        Rule("vision_model.post_layernorm.bias", "post_norm/bias"),
        *block_rules(CLIP_BLOCKS),
    ),
    renames=(WITHOUT_PREFIX,),
    ignored=(
        r"vision_model\.embeddings\.position_ids",
        r"text_model\..*",
        r"(text|visual)_projection\.weight",
        r"logit_scale",
    ),
)


def from_hugging_face(config: HuggingFaceConfig) -> ViTConfig:
    """From a tower's config, or the `vision_config` of a whole CLIP model's."""
    config = _DEFAULTS | dict(config.get("vision_config", config))
    require("CLIP", config, num_channels=3)
    return ViTConfig(
        **shape_of(config),
        feed_forward_width=config["intermediate_size"],
        patch_bias=False,
        pre_norm=True,
        pixel_mean=CLIP_MEAN,
        pixel_std=CLIP_STD,
    )


def to_hugging_face(config: ViTConfig) -> dict[str, Any]:
    """A `CLIPVisionConfig`."""
    require_tower("CLIP", config, patch_bias=False, pre_norm=True)
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "intermediate_size": config.feed_forward_width,
        **their_shape(config, own_side(config, "CLIP")),
    }


CLIP = Family("clip", ("clip_vision_model", "clip"), TABLE, from_hugging_face, to_hugging_face)
