"""Named sizes: the published models as values of the configs, and the demo's own small ones."""

from typing import Any

from mllm_jax.models.decoder_presets import DECODERS as DECODERS
from mllm_jax.models.vit import FeatureConfig, ViTConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_CLIP_B32 = ViTConfig(
    image_size=(224, 224),
    patch_size=32,
    width=768,
    layers=12,
    heads=12,
    feed_forward_width=3072,
    activation="quick_gelu",
    patch_bias=False,
    pre_norm=True,
    norm_epsilon=1e-5,
    pixel_mean=CLIP_MEAN,
    pixel_std=CLIP_STD,
)

_DINOV2_SMALL = ViTConfig(
    image_size=(518, 518),
    patch_size=14,
    width=384,
    layers=12,
    heads=6,
    feed_forward_width=1536,
    layer_scale=True,
    pixel_mean=IMAGENET_MEAN,
    pixel_std=IMAGENET_STD,
)

_SIGLIP_SO400M = ViTConfig(
    image_size=(384, 384),
    patch_size=14,
    width=1152,
    layers=27,
    heads=16,
    feed_forward_width=4304,
    activation="gelu_tanh",
    class_token=False,
)


_PALIGEMMA_VIT = _SIGLIP_SO400M.model_copy(
    update={"image_size": (224, 224), "features": FeatureConfig(layer=-1, post_norm=True)}
)


def _sized(config: ViTConfig, width: int, layers: int, heads: int, feed_forward_width: int, **others: Any) -> ViTConfig:
    """The same architecture at another size."""
    size = {"width": width, "layers": layers, "heads": heads, "feed_forward_width": feed_forward_width}
    return config.model_copy(update=size | others)


_CLIP_L14 = _sized(_CLIP_B32, 1024, 24, 16, 4096, patch_size=14)

_DINOV2: dict[str, ViTConfig] = {
    "dinov2_small": _DINOV2_SMALL,
    "dinov2_base": _sized(_DINOV2_SMALL, 768, 12, 12, 3072),
    "dinov2_large": _sized(_DINOV2_SMALL, 1024, 24, 16, 4096),
    "dinov2_giant": _sized(_DINOV2_SMALL, 1536, 40, 24, 4096, activation="silu", feed_forward="gated"),
}

ENCODERS: dict[str, ViTConfig] = {
    "tiny_vit": ViTConfig(
        image_size=(64, 64),
        patch_size=8,
        width=128,
        layers=4,
        heads=4,
        feed_forward_width=512,
        class_token=False,
        features=FeatureConfig(layer=-1, post_norm=False),
    ),
    "clip_vit_b32": _CLIP_B32,
    "clip_vit_b16": _CLIP_B32.model_copy(update={"patch_size": 16}),
    "clip_vit_l14": _CLIP_L14,
    "clip_vit_l14_336": _CLIP_L14.model_copy(update={"image_size": (336, 336)}),
    "open_clip_vit_l14": _CLIP_L14.model_copy(update={"activation": "gelu"}),
    "open_clip_vit_h14": _sized(_CLIP_L14, 1280, 32, 16, 5120, activation="gelu"),
    "open_clip_vit_bigg14": _sized(_CLIP_L14, 1664, 48, 16, 8192, activation="gelu"),
    "eva_vit_g14": ViTConfig(
        image_size=(224, 224),
        patch_size=14,
        width=1408,
        layers=39,
        heads=16,
        feed_forward_width=6144,
        pixel_mean=CLIP_MEAN,
        pixel_std=CLIP_STD,
        features=FeatureConfig(layer=-1, keep_class_token=True, post_norm=True),
    ),
    "siglip_base_16_224": _sized(_SIGLIP_SO400M, 768, 12, 12, 3072, image_size=(224, 224), patch_size=16),
    "siglip_large_16_384": _sized(_SIGLIP_SO400M, 1024, 24, 16, 4096, patch_size=16),
    "siglip_so400m_14_224": _SIGLIP_SO400M.model_copy(update={"image_size": (224, 224)}),
    "siglip_so400m_14_384": _SIGLIP_SO400M,
    "paligemma_vit_224": _PALIGEMMA_VIT,
    "paligemma_vit_448": _PALIGEMMA_VIT.model_copy(update={"image_size": (448, 448)}),
    "siglip2_so400m_16_512": _SIGLIP_SO400M.model_copy(update={"image_size": (512, 512), "patch_size": 16}),
    "siglip2_giant_16_384": _sized(_SIGLIP_SO400M, 1536, 40, 16, 6144, patch_size=16),
    **_DINOV2,
    **{f"{name}_registers": config.model_copy(update={"registers": 4}) for name, config in _DINOV2.items()},
    "internvit_300m_448": _sized(
        _DINOV2_SMALL, 1024, 24, 16, 4096, image_size=(448, 448), final_norm=False, features=FeatureConfig(layer=-1)
    ),
}
"""Vision encoders; SigLIP 2 of a fixed size has the architecture of SigLIP (https://arxiv.org/abs/2502.14786)."""
