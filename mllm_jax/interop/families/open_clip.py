"""Vision towers as open_clip saves them (https://arxiv.org/abs/2212.07143): CLIP's under other names, read only.

Such a folder holds `open_clip_config.json` and `open_clip_model.safetensors`. What is exported is transformers' CLIP.
"""

from typing import Any

from mllm_jax.interop.families.blocks import OPEN_CLIP_BLOCKS, block_rules
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require
from mllm_jax.interop.rules import CONVOLUTION, Rule, Table
from mllm_jax.models.presets import CLIP_MEAN, CLIP_STD
from mllm_jax.models.vit import ViTConfig

MODEL_TYPE = "open_clip"
"""Stands for the file name, since open_clip's config has no `model_type`."""

TABLE = Table(
    rules=(
        Rule("visual.conv1.weight", "patch_embedding/kernel", CONVOLUTION),
        Rule("visual.class_embedding", "class_token"),
        Rule("visual.positional_embedding", "position_embedding"),
        Rule("visual.ln_pre.weight", "pre_norm/scale"),
        Rule("visual.ln_pre.bias", "pre_norm/bias"),
        Rule("visual.ln_post.weight", "post_norm/scale"),
        Rule("visual.ln_post.bias", "post_norm/bias"),
        *block_rules(OPEN_CLIP_BLOCKS),
    ),
    renames=((r"(visual\.transformer\.resblocks\.\d+\.attn\.in_proj)_", r"\1."),),
    ignored=(
        r"visual\.proj",
        r"(text\.)?(transformer|token_embedding|ln_final)\..*",
        r"(text\.)?(positional_embedding|text_projection|attn_mask)",
        r"logit_(scale|bias)",
    ),
)


def from_open_clip(config: HuggingFaceConfig) -> ViTConfig:
    """From an `open_clip_config.json`."""
    model = config.get("model_cfg", {})
    tower = model.get("vision_cfg", {})
    if "timm_model_name" in tower or isinstance(tower.get("layers"), list | tuple):
        raise FamilyError("open_clip: only its own vision transformers can be imported, but this tower is another.")
    fixed = {"ls_init_value": None, "no_ln_pre": False, "pos_embed_type": "learnable", "attentional_pool": False}
    require("open_clip", tower, **fixed, final_ln_after_pool=False, input_patchnorm=False)
    pixels = config.get("preprocess_cfg", {})
    size, width = tower.get("image_size", 224), tower["width"]
    return ViTConfig(
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        patch_size=tower["patch_size"],
        width=width,
        layers=tower["layers"],
        heads=width // tower.get("head_width", 64),
        feed_forward_width=int(width * tower.get("mlp_ratio", 4.0)),
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        patch_bias=False,
        pre_norm=True,
        norm_epsilon=1e-5,
        pixel_mean=tuple(pixels.get("mean", CLIP_MEAN)),
        pixel_std=tuple(pixels.get("std", CLIP_STD)),
    )


def _to_open_clip(config: ViTConfig) -> dict[str, Any]:
    raise FamilyError("open_clip's own files are read only; its towers are exported as CLIP.")


OPEN_CLIP = Family("open_clip", (MODEL_TYPE,), TABLE, from_open_clip, _to_open_clip)
