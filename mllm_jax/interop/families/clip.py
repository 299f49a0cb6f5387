"""CLIP's vision tower (https://arxiv.org/abs/2103.00020)."""

from typing import Any

from mllm_jax.interop.families.family import Family, HuggingFaceConfig, require, require_ours
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, image_size, our_activation, own_grid, patch_size
from mllm_jax.interop.rules import CONVOLUTION, FLAT, LINEAR, LINEAR_FROM_HEADS, Rule, Table
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

_BLOCK = "vision_model.encoder.layers.{layer}."

BLOCK_RULES = (
    Rule(_BLOCK + "layer_norm1.weight", "blocks/attention_norm/scale"),
    Rule(_BLOCK + "layer_norm1.bias", "blocks/attention_norm/bias"),
    Rule(_BLOCK + "self_attn.q_proj.weight", "blocks/attention/query/kernel", LINEAR),
    Rule(_BLOCK + "self_attn.q_proj.bias", "blocks/attention/query/bias", FLAT),
    Rule(_BLOCK + "self_attn.k_proj.weight", "blocks/attention/key/kernel", LINEAR),
    Rule(_BLOCK + "self_attn.k_proj.bias", "blocks/attention/key/bias", FLAT),
    Rule(_BLOCK + "self_attn.v_proj.weight", "blocks/attention/value/kernel", LINEAR),
    Rule(_BLOCK + "self_attn.v_proj.bias", "blocks/attention/value/bias", FLAT),
    Rule(_BLOCK + "self_attn.out_proj.weight", "blocks/attention/output/kernel", LINEAR_FROM_HEADS),
    Rule(_BLOCK + "self_attn.out_proj.bias", "blocks/attention/output/bias"),
    Rule(_BLOCK + "layer_norm2.weight", "blocks/feed_forward_norm/scale"),
    Rule(_BLOCK + "layer_norm2.bias", "blocks/feed_forward_norm/bias"),
    Rule(_BLOCK + "mlp.fc1.weight", "blocks/feed_forward/up/kernel", LINEAR),
    Rule(_BLOCK + "mlp.fc1.bias", "blocks/feed_forward/up/bias"),
    Rule(_BLOCK + "mlp.fc2.weight", "blocks/feed_forward/down/kernel", LINEAR),
    Rule(_BLOCK + "mlp.fc2.bias", "blocks/feed_forward/down/bias"),
)
"""A block's rules, which SigLIP shares."""

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
        *BLOCK_RULES,
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
        image_size=image_size(config),
        patch_size=patch_size(config),
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        feed_forward_width=config["intermediate_size"],
        activation=our_activation(config["hidden_act"]),
        patch_bias=False,
        pre_norm=True,
        norm_epsilon=config["layer_norm_eps"],
        pixel_mean=CLIP_MEAN,
        pixel_std=CLIP_STD,
    )


def to_hugging_face(config: ViTConfig) -> dict[str, Any]:
    """A `CLIPVisionConfig`."""
    require_ours("CLIP", config, class_token=True, registers=0, patch_bias=False, pre_norm=True, layer_scale=False)
    own_grid(config, "CLIP")
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": config.image_size[0],
        "patch_size": config.patch_size,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "layer_norm_eps": config.norm_epsilon,
    }


CLIP = Family("clip", ("clip_vision_model", "clip"), TABLE, from_hugging_face, to_hugging_face)
