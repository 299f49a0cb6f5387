"""Qwen2-VL (https://arxiv.org/abs/2409.12191): a tower and a decoder that turn their heads by rows and columns.

Their images have any size, those of one of our models have one: `image_size` in the tower's config and in the image
processor's, which transformers leaves alone, or 448 x 448 where neither says. transformers' processor keeps an image's
shape as well as it can within a number of pixels, so it makes the same of an image that has that size already or a
multiple of it; an image of another shape gets a grid of its own.
"""

from collections.abc import Mapping
from typing import Any

from data_pipelines.tokenizer import IMAGE_TOKEN
from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig
from mllm_jax.interop.families.blocks import BlockNames, block_rules
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor, tower_of
from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig, require, require_ours
from mllm_jax.interop.families.qwen import QWEN2
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, image_size, our_activation, patch_size, require_tower
from mllm_jax.interop.processor import resample_name
from mllm_jax.interop.rules import FRAMES_CONVOLUTION, LINEAR, Rule, Table
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.presets import CLIP_MEAN, CLIP_STD
from mllm_jax.models.vit import FeatureConfig, ViTConfig

_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_window_layers": 80,
}
_TOWER_DEFAULTS: dict[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_act": "quick_gelu",
    "mlp_ratio": 4,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""What transformers takes for a key that a config.json leaves out."""

_SIZE = (448, 448)
_SECTIONS = (16, 24, 24)
_EPSILON = 1e-6

_FEATURES = FeatureConfig(layer=-1)
_OWN: dict[str, Any] = {"class_token": False, "patch_bias": False, "final_norm": False, "positions": "rotary"}

_BLOCKS = BlockNames(
    block="visual.blocks.{layer}.",
    attention_norm="norm1",
    query="attn.qkv",
    key="attn.qkv",
    value="attn.qkv",
    output="attn.proj",
    feed_forward_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
)

_TOWER = Table(
    (Rule("visual.patch_embed.proj.weight", "patch_embedding/kernel", FRAMES_CONVOLUTION), *block_rules(_BLOCKS))
)

_MERGER = Table(
    (
        Rule("ln_q.weight", "patch_norm/scale"),
        Rule("ln_q.bias", "patch_norm/bias"),
        Rule("mlp.0.weight", "layers_0/kernel", LINEAR),
        Rule("mlp.0.bias", "layers_0/bias"),
        Rule("mlp.2.weight", "layers_1/kernel", LINEAR),
        Rule("mlp.2.bias", "layers_1/bias"),
    )
)

_TRANSFORMERS_5 = ((r"model\.visual\.", "visual."), (r"model\.language_model\.", "model."))
"""Names as they are in memory of transformers 5 to those that files have."""

_TABLE = (
    Table((), _TRANSFORMERS_5)
    + _TOWER.below("", "encoder/")
    + _MERGER.below("visual.merger.", "connector/")
    + QWEN2.table.below("", "decoder/")
)


def _from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
    tower = _TOWER_DEFAULTS | {
        key: value for key, value in config.get("vision_config", {}).items() if value is not None
    }
    text = dict(config.get("text_config") or config)
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    return MultimodalConfig(encoder=_our_tower(tower), connector=_our_merger(tower), decoder=_our_decoder(text))


def _our_tower(config: dict[str, Any]) -> ViTConfig:
    require("Qwen2-VL", config, in_channels=3, in_chans=3)
    return ViTConfig(
        image_size=image_size({"image_size": config.get("image_size", _SIZE)}),
        patch_size=patch_size(config),
        patch_frames=config["temporal_patch_size"],
        width=config["embed_dim"],
        layers=config["depth"],
        heads=config["num_heads"],
        feed_forward_width=int(config["embed_dim"] * config["mlp_ratio"]),
        activation=our_activation(config["hidden_act"]),
        norm_epsilon=_EPSILON,
        rope_theta=(config.get("rope_parameters") or {}).get("rope_theta", 10000.0),
        pixel_mean=CLIP_MEAN,
        pixel_std=CLIP_STD,
        features=_FEATURES,
        **_OWN,
    )


def _our_merger(config: dict[str, Any]) -> PixelShuffleConfig:
    return PixelShuffleConfig(
        factor=config["spatial_merge_size"], patch_norm=True, inner="features", norm_epsilon=_EPSILON
    )


def _our_decoder(config: dict[str, Any]) -> DecoderConfig:
    rope = dict(config.pop("rope_parameters", None) or config.pop("rope_scaling", None) or {})
    sections = rope.pop("mrope_section", _SECTIONS)
    if "mrope" in (rope.get("rope_type"), rope.get("type")):
        rope |= {"rope_type": "default"}
    decoder = QWEN2.from_hugging_face(_TEXT_DEFAULTS | config | {"rope_parameters": rope, "rope_scaling": None})
    return DecoderConfig.model_validate(decoder.model_dump() | {"rotary_sections": sections})


def _to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
    encoder, decoder, connector = tower_of(config), config.decoder, _merger(config)
    require_tower("Qwen2-VL", encoder, ("patch_frames",), **_OWN)
    require_ours("Qwen2-VL", encoder, norm_epsilon=_EPSILON, features=_FEATURES)
    if encoder.feed_forward_width % encoder.width:
        raise FamilyError("Qwen2-VL models have encoder.feed_forward_width a multiple of encoder.width.")
    require_ours("Qwen2-VL", decoder, head_width=decoder.width // decoder.heads)
    if decoder.rotary_sections is None:
        raise FamilyError("Qwen2-VL models have decoder.rotary_sections, but this one has none.")
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_config": _their_tower(encoder, connector, decoder.width),
        "text_config": _their_decoder(decoder),
        "tie_word_embeddings": decoder.tied_embeddings,
    }


def _their_tower(encoder: ViTConfig, connector: PixelShuffleConfig, width: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2_vl_vision",
        "depth": encoder.layers,
        "embed_dim": encoder.width,
        "hidden_size": width,
        "hidden_act": ACTIVATION_NAMES[encoder.activation],
        "mlp_ratio": encoder.feed_forward_width // encoder.width,
        "num_heads": encoder.heads,
        "in_channels": 3,
        "patch_size": encoder.patch_size,
        "spatial_merge_size": connector.factor,
        "temporal_patch_size": encoder.patch_frames,
        "rope_parameters": {"rope_type": "axial", "rope_theta": encoder.rope_theta},
        "image_size": list(encoder.image_size),
    }


def _their_decoder(decoder: DecoderConfig) -> dict[str, Any]:
    theirs = QWEN2.to_hugging_face(decoder.model_copy(update={"rotary_sections": None}))
    del theirs["architectures"], theirs["head_dim"]
    assert decoder.rotary_sections is not None
    rope = theirs["rope_scaling"] or {"type": "mrope", "rope_type": "default"}
    return theirs | {
        "model_type": "qwen2_vl_text",
        "rope_scaling": {**rope, "mrope_section": list(decoder.rotary_sections)},
    }


def _merger(config: MultimodalConfig) -> PixelShuffleConfig:
    connector, expected = config.connector, _our_merger(_TOWER_DEFAULTS)
    if not isinstance(connector, PixelShuffleConfig) or connector.model_copy(update={"factor": 2}) != expected:
        raise FamilyError(
            "Qwen2-VL models have a connector of kind 'pixel_shuffle' with depth 2, gelu, biases, patch_norm (epsilon "
            f"{_EPSILON}) and inner 'features', but this one has another."
        )
    return connector


def _image_size(preprocessor: Mapping[str, Any]) -> tuple[int, int] | None:
    return image_size(preprocessor) if "image_size" in preprocessor else None


def _image_transform(preprocessor: Mapping[str, Any]) -> ImageTransformConfig | None:
    """Of an image of the model's size; one of another size is resized to it, its shape changed."""
    resample = resample_name(preprocessor.get("resample", RESAMPLING["bicubic"]))
    return (
        None if resample is None else ImageTransformConfig(size=_image_size(preprocessor) or _SIZE, resample=resample)
    )


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """A processor that makes the model's size of an image of that size, and of others about as many pixels."""
    encoder, factor = tower_of(config), _merger(config).factor
    (height, width), unit = transform.size, encoder.patch_size * factor
    if transform.mode != "squash" or height % unit or width % unit:
        raise ValueError(
            f"Qwen2-VL's image processor resizes whole images to multiples of {unit} pixels, but "
            f"image_transform has mode {transform.mode!r} and size {transform.size}; change it before training."
        )
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height * width, "longest_edge": height * width},
        "min_pixels": height * width,
        "max_pixels": height * width,
        "image_size": [height, width],
        "resample": int(RESAMPLING[transform.resample]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.pixel_mean),
        "image_std": list(encoder.pixel_std),
        "patch_size": encoder.patch_size,
        "temporal_patch_size": encoder.patch_frames,
        "merge_size": factor,
    }
    return {"preprocessor_config.json": images, "processor_config.json": {"processor_class": "Qwen2VLProcessor"}}


_FAMILY = MultimodalFamily(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    table=_TABLE,
    from_hugging_face=_from_hugging_face,
    to_hugging_face=_to_hugging_face,
    processor=Processor(_image_transform, _image_size, _processor_files),
    image_token_key="image_token_id",
    image_token_default=151655,
    placeholders=("<|image_pad|>", IMAGE_TOKEN),
    token_keys={
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "video_token_id": "<|video_pad|>",
    },
)

QWEN2_VL = CompositeFamily(("qwen2_vl",), lambda config: _FAMILY, lambda config: _FAMILY)
