"""Idefics3 (https://arxiv.org/abs/2408.12637) and SmolVLM: SigLIP, pixel shuffle with one layer, a language model.

transformers has the same architecture under both names. Whether images are split is said by the processor.
"""

from collections.abc import Mapping
from typing import Any

from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig
from data_pipelines.transforms.splitting import SplittingConfig
from data_pipelines.transforms.templates import IDEFICS3_IMAGE
from data_pipelines.transforms.tiling import TilingConfig
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require
from mllm_jax.interop.families.idefics_parts import our_tower, squashing_processor, text_model, their_tower
from mllm_jax.interop.families.parts import decoder_of_folder, part_of_config
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.interop.processor import resample_name
from mllm_jax.interop.rules import LINEAR, Rule, Table
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, slot_features

_TOWER_DEFAULTS: dict[str, Any] = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
"""What transformers takes for a key that a config.json leaves out, where SigLIP differs."""

_PROJECTION = Rule("model.connector.modality_projection.proj.weight", "connector/layers_0/kernel", LINEAR)


def idefics3(decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of Idefics3 models with a decoder of this family."""
    text = text_model("Idefics3", decoder).below("", "decoder/")
    table = SIGLIP.table.below("model.", "encoder/") + Table((_PROJECTION,)) + text

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        text = dict(config.get("text_config", {}))
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
        return MultimodalConfig(
            encoder=our_tower("Idefics3", _TOWER_DEFAULTS | dict(config.get("vision_config", {}))),
            connector=PixelShuffleConfig(factor=config.get("scale_factor", 2), depth=1, bias=False),
            decoder=decoder.from_hugging_face(text),
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        return {
            "architectures": ["Idefics3ForConditionalGeneration"],
            "model_type": "idefics3",
            "vision_config": their_tower("Idefics3", config, "idefics3_vision"),
            "text_config": decoder.to_hugging_face(config.decoder),
            "tie_word_embeddings": config.decoder.tied_embeddings,
            "scale_factor": _factor(config),
        }

    return MultimodalFamily(
        name=f"idefics3({decoder.name})",
        model_types=("idefics3", "smolvlm"),
        table=table,
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(
            _image_transform, _image_size, _processor_files, surrounds=lambda config: IDEFICS3_IMAGE, tiling=_tiling
        ),
        image_token_key="image_token_id",
        image_token_default=128257,
    )


def _factor(config: MultimodalConfig) -> int:
    connector = config.connector
    if not isinstance(connector, PixelShuffleConfig) or connector.depth != 1 or connector.bias or _normed(connector):
        raise FamilyError(
            "Idefics3 models have a connector of kind 'pixel_shuffle' with depth 1 and neither bias nor norm, but this "
            "one has another."
        )
    return connector.factor


def _normed(connector: PixelShuffleConfig) -> bool:
    return connector.norm or connector.patch_norm


def _image_transform(preprocessor: Mapping[str, Any]) -> ImageTransformConfig | None:
    """Of the whole image; where it is not split, a processor that first makes it smaller, keeping its shape, is a
    little softer."""
    size, resample = _image_size(preprocessor), resample_name(preprocessor.get("resample", RESAMPLING["lanczos"]))
    return None if size is None or resample is None else ImageTransformConfig(size=size, resample=resample)


def _image_size(preprocessor: Mapping[str, Any]) -> tuple[int, int] | None:
    largest = preprocessor.get("max_image_size")
    side = largest.get("longest_edge") if isinstance(largest, Mapping) else None
    return None if side is None else (side, side)


def _tiling(preprocessor: Mapping[str, Any]) -> SplittingConfig | None:
    size = _image_size(preprocessor)
    if size is None or not preprocessor.get("do_image_splitting", True):
        return None
    require("Idefics3", preprocessor, do_resize=True)
    scaled = preprocessor.get("size") or {"longest_edge": 4 * 364}
    longest = scaled.get("longest_edge")
    tiles, rest = divmod(longest or 0, size[0])
    if longest is None or rest or not 1 <= tiles <= 6:
        raise FamilyError(
            f"Idefics3: the image processor scales images to {scaled} before it splits them, but only a longest_edge "
            f"of 1 to 6 tiles of {size[0]} pixels can be imported."
        )
    return SplittingConfig(longest_side=tiles) if tiles > 1 else None


def _their_size(tiling: TilingConfig | None, side: int) -> dict[str, int]:
    """The size to which their image processor scales an image before it is split, or once and for all."""
    if isinstance(tiling, SplittingConfig):
        return {"longest_edge": tiling.longest_side * side}
    return {"height": side, "width": side}


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    side = transform.size[0]
    images = squashing_processor("Idefics3", config, transform) | {
        "size": _their_size(config.tiling, side),
        "max_image_size": {"longest_edge": side},
        "do_image_splitting": config.tiling is not None,
    }
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": slot_features(config)}
    return {"preprocessor_config.json": images, "processor_config.json": processor}


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return idefics3(decoder_of_folder(config.get("text_config", {}), "llama"))


def _of_config(config: MultimodalConfig) -> MultimodalFamily:
    return idefics3(part_of_config(config.decoder))


IDEFICS3 = CompositeFamily(("idefics3", "smolvlm"), _of_folder, _of_config, tilings=(None, "splitting"))
