"""InternVL (https://arxiv.org/abs/2504.10479): InternViT, pixel shuffle with a normed MLP, and a language model.

Whether images are tiled is said by the processor: InternVL's own always does it, LLaVA's takes an image as one whole.
"""

from typing import Any

from data_pipelines.tokenizer import IMAGE_TOKEN
from data_pipelines.transforms.dynamic import DynamicConfig
from data_pipelines.transforms.image import ImageTransformConfig, processor_config
from data_pipelines.transforms.templates import INTERNVL_IMAGE
from mllm_jax.interop.families.composite import (
    CompositeFamily,
    MultimodalFamily,
    Processor,
    ProcessorConfig,
    projector_table,
    tower_of,
)
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.features import selected_features, their_selection
from mllm_jax.interop.families.internvit import INTERNVIT
from mllm_jax.interop.families.llava import CONNECTOR
from mllm_jax.interop.families.parts import decoder_of_folder, part_of_config
from mllm_jax.interop.families.vision import ACTIVATION_NAMES, our_activation
from mllm_jax.interop.processor import image_transform, output_size
from mllm_jax.interop.rules import Rule
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, slot_features

_NORM = (Rule("layer_norm.weight", "norm/scale"), Rule("layer_norm.bias", "norm/bias"))


def internvl(decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of InternVL models with a decoder of this family."""

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        tower = INTERNVIT.from_hugging_face(config.get("vision_config", {}))
        text = dict(config.get("text_config", {}))
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
        return MultimodalConfig(
            encoder=tower.model_copy(update={"features": selected_features("InternVL", config, tower, -1)}),
            connector=PixelShuffleConfig(
                factor=int(1 / config.get("downsample_ratio", 0.5)),
                activation=our_activation(config.get("projector_hidden_act", "gelu")),
                norm=True,
            ),
            decoder=decoder.from_hugging_face(text),
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        connector = _connector(config)
        return {
            "architectures": ["InternVLForConditionalGeneration"],
            "model_type": "internvl",
            "vision_config": INTERNVIT.to_hugging_face(tower_of(config)),
            "text_config": decoder.to_hugging_face(config.decoder),
            "tie_word_embeddings": config.decoder.tied_embeddings,
            "downsample_ratio": 1 / connector.factor,
            "projector_hidden_act": ACTIVATION_NAMES[connector.activation],
            "image_seq_length": slot_features(config),
            **their_selection("InternVL", tower_of(config)),
        }

    return MultimodalFamily(
        name=f"internvl({decoder.name})",
        model_types=("internvl",),
        table=projector_table(INTERNVIT.table, CONNECTOR + _NORM, decoder.table),
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(
            image_transform,
            output_size,
            _processor_files,
            surrounds=lambda config: None if config.tiling is None else INTERNVL_IMAGE,
            tiling=_tiling,
            token_names=lambda config: {} if config.tiling is None else _TOKEN_NAMES,
        ),
        image_token_key="image_token_id",
        image_token_default=151667,
        placeholders=("<IMG_CONTEXT>", IMAGE_TOKEN),
    )


def _connector(config: MultimodalConfig) -> PixelShuffleConfig:
    connector, grid = config.connector, tower_of(config).grid
    expected = PixelShuffleConfig(norm=True)
    if not isinstance(connector, PixelShuffleConfig) or expected != connector.model_copy(
        update={"factor": expected.factor, "activation": expected.activation}
    ):
        raise FamilyError(
            "InternVL models have a connector of kind 'pixel_shuffle' with depth 2, biases and norm, but this one has "
            "another."
        )
    if connector.factor & (connector.factor - 1):
        raise FamilyError(f"InternVL models have a factor that is a power of two, but this one has {connector.factor}.")
    if grid[0] != grid[1]:
        raise FamilyError(f"InternVL models in transformers take square images, but this one takes {grid} patches.")
    return connector


def _whole_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """A `LlavaProcessor`; what is a patch to it is a token here."""
    encoder = tower_of(config)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": encoder.patch_size * _connector(config).factor,
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": 0,
        "image_token": IMAGE_TOKEN,
    }
    return {
        "preprocessor_config.json": processor_config(transform, encoder.pixel_mean, encoder.pixel_std),
        "processor_config.json": processor,
    }


def _tiling(preprocessor: ProcessorConfig) -> DynamicConfig | None:
    """Their image processor of this name stands only in a processor that cuts images, whatever it says itself."""
    most = preprocessor.get("max_patches", DynamicConfig().max_tiles)
    if not str(preprocessor.get("image_processor_type", "")).startswith(_IMAGE_PROCESSOR) or most < 2:
        return None
    return DynamicConfig(min_tiles=preprocessor.get("min_patches", 1), max_tiles=most)


def _tiled_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    tiling, encoder = config.tiling, tower_of(config)
    if not isinstance(tiling, DynamicConfig) or not tiling.thumbnail:
        raise ValueError(f"InternVL's processor adds a thumbnail to tiles, but this model's tiling is {tiling!r}.")
    if transform.mode != "squash":
        raise ValueError(
            f"image_transform.mode is {transform.mode!r}, but transformers' InternVL image processor squashes an image "
            "into its thumbnail; set mode to squash before training."
        )
    images = processor_config(transform, encoder.pixel_mean, encoder.pixel_std) | {"processor_class": _PROCESSOR}
    tiles = {"crop_to_patches": True, "min_patches": tiling.min_tiles, "max_patches": tiling.max_tiles}
    videos = {"video_processor_type": "InternVLVideoProcessor"}
    return {
        "preprocessor_config.json": images | tiles | {"image_processor_type": _IMAGE_PROCESSOR},
        "video_preprocessor_config.json": {key: images[key] for key in _OF_VIDEOS} | videos,
        "processor_config.json": {"processor_class": _PROCESSOR, "image_seq_length": slot_features(config)},
    }


_PROCESSOR = "InternVLProcessor"
_IMAGE_PROCESSOR = "GotOcr2ImageProcessor"
_OF_VIDEOS = (
    *("processor_class", "do_convert_rgb", "do_resize", "size", "resample"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
"""What their processor does to the frames of a video, which it cannot be without, as to images."""

_TOKEN_NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": None,
    "video_token": "<video>",
}


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    return (_whole_files if config.tiling is None else _tiled_files)(config, transform)


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return internvl(decoder_of_folder(config.get("text_config", {}), "qwen2"))


def _of_config(config: MultimodalConfig) -> MultimodalFamily:
    return internvl(part_of_config(config.decoder))


INTERNVL = CompositeFamily(("internvl",), _of_folder, _of_config, tilings=(None, "dynamic"))
