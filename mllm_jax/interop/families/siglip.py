"""SigLIP's vision tower (https://arxiv.org/abs/2303.15343), without its attention-pool head."""

from typing import Any

from mllm_jax.interop.families.blocks import CLIP_BLOCKS, block_rules
from mllm_jax.interop.families.clip import WITHOUT_PREFIX
from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require
from mllm_jax.interop.families.vision import own_side, require_tower, shape_of, their_shape
from mllm_jax.interop.rules import CONVOLUTION, Rule, Table
from mllm_jax.models.vit import ViTConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""What transformers takes for a key that a config.json leaves out."""

_HEAD = r"vision_model\.head\."

TABLE = Table(
    rules=(
        Rule("vision_model.embeddings.patch_embedding.weight", "patch_embedding/kernel", CONVOLUTION),
        Rule("vision_model.embeddings.patch_embedding.bias", "patch_embedding/bias"),
        Rule("vision_model.embeddings.position_embedding.weight", "position_embedding"),
        Rule("vision_model.post_layernorm.weight", "post_norm/scale"),
        Rule("vision_model.post_layernorm.bias", "post_norm/bias"),
        *block_rules(CLIP_BLOCKS),
    ),
    renames=(WITHOUT_PREFIX,),
    ignored=(
        _HEAD + r"probe",
        _HEAD + r"attention\.in_proj_(weight|bias)",
        _HEAD + r"attention\.out_proj\.(weight|bias)",
        _HEAD + r"layernorm\.(weight|bias)",
        _HEAD + r"mlp\.fc[12]\.(weight|bias)",
        r"vision_model\.embeddings\.position_ids",
        r"text_model\..*",
        r"logit_(scale|bias)",
    ),
)


def from_hugging_face(config: HuggingFaceConfig) -> ViTConfig:
    """From a tower's config, or the `vision_config` of a whole SigLIP model's."""
    config = _DEFAULTS | dict(config.get("vision_config", config))
    require("SigLIP", config, num_channels=3)
    return ViTConfig(**shape_of(config), feed_forward_width=config["intermediate_size"], class_token=False)


def to_hugging_face(config: ViTConfig) -> dict[str, Any]:
    """A `SiglipVisionConfig` without the pooling head."""
    require_tower("SigLIP", config, class_token=False)
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "intermediate_size": config.feed_forward_width,
        **their_shape(config, own_side(config, "SigLIP")),
        "vision_use_head": False,
    }


SIGLIP = Family("siglip", ("siglip_vision_model", "siglip"), TABLE, from_hugging_face, to_hugging_face)
