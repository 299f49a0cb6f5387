"""Idefics3 (https://arxiv.org/abs/2408.12637) and SmolVLM: SigLIP, pixel shuffle with one layer, a language model.

transformers has the same architecture under both names. Images are not split: an image takes one slot.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig
from data_pipelines.transforms.templates import IDEFICS3_IMAGE
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor, tower_of
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require_ours
from mllm_jax.interop.families.parts import decoder_of_folder, part_of_config
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.interop.processor import resample_name
from mllm_jax.interop.rules import LINEAR, Rule, Table
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.vit import FeatureConfig, ViTConfig

_TOWER_DEFAULTS: dict[str, Any] = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
"""What transformers takes for a key that a config.json leaves out, where SigLIP differs."""

_FEATURES = FeatureConfig(layer=-1, post_norm=True)

_PROJECTION = Rule("model.connector.modality_projection.proj.weight", "connector/layers_0/kernel", LINEAR)


def idefics3(decoder: Family[DecoderConfig]) -> MultimodalFamily:
    """The family of Idefics3 models with a decoder of this family."""
    table = SIGLIP.table.below("model.", "encoder/") + Table((_PROJECTION,)) + text_model(decoder).below("", "decoder/")

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        tower = SIGLIP.from_hugging_face(_TOWER_DEFAULTS | dict(config.get("vision_config", {})))
        _check_positions(tower)
        text = dict(config.get("text_config", {}))
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
        return MultimodalConfig(
            encoder=tower.model_copy(update={"features": _FEATURES}),
            connector=PixelShuffleConfig(factor=config.get("scale_factor", 2), depth=1, bias=False),
            decoder=decoder.from_hugging_face(text),
        )

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        _check_positions(tower_of(config))
        require_ours("Idefics3", tower_of(config), features=_FEATURES)
        tower = SIGLIP.to_hugging_face(tower_of(config))
        del tower["architectures"], tower["vision_use_head"]
        return {
            "architectures": ["Idefics3ForConditionalGeneration"],
            "model_type": "idefics3",
            "vision_config": tower | {"model_type": "idefics3_vision"},
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
        processor=Processor(_image_transform, _image_size, _processor_files, surrounds=IDEFICS3_IMAGE),
        image_token_key="image_token_id",
        image_token_default=128257,
    )


def text_model(decoder: Family[DecoderConfig]) -> Table:
    """The table of a decoder as a part of a model that keeps its output projection apart."""
    table = decoder.table
    strange = [rule.theirs for rule in table.rules if not rule.theirs.startswith(("model.", "lm_head."))]
    if strange:
        raise FamilyError(f"Idefics3 models have no decoder of family {decoder.name!r}: {strange[0]} has no place.")
    return Table(
        rules=tuple(replace(rule, theirs=_in_text_model(rule.theirs)) for rule in table.rules),
        ignored=tuple(pattern.replace(r"model\.", r"model\.text_model\.", 1) for pattern in table.ignored),
        copies=tuple((_in_text_model(copy), _in_text_model(original)) for copy, original in table.copies),
    )


def _in_text_model(name: str) -> str:
    return name.replace("model.", "model.text_model.", 1) if name.startswith("model.") else name


def _factor(config: MultimodalConfig) -> int:
    connector = config.connector
    if not isinstance(connector, PixelShuffleConfig) or connector.depth != 1 or connector.bias or connector.norm:
        raise FamilyError(
            "Idefics3 models have a connector of kind 'pixel_shuffle' with depth 1 and neither bias nor norm, but this "
            "one has another."
        )
    return connector.factor


def _check_positions(encoder: ViTConfig) -> None:
    """transformers finds a patch's position by fractions of the image, which for some grids rounds to a neighbour's."""
    side = encoder.grid[0]
    borders = (np.arange(1, side) * (1 / side)).astype(np.float32)
    found = np.searchsorted(borders, np.arange(side, dtype=np.float32) * np.float32(1 / side), side="right")
    if not np.array_equal(found, np.arange(side)):
        raise FamilyError(
            f"Idefics3: transformers rounds the positions of {side} patches a side so that some are used twice; choose "
            "another encoder.image_size or encoder.patch_size."
        )


def _image_transform(preprocessor: Mapping[str, Any]) -> ImageTransformConfig | None:
    """Of an image that is not split; a processor that first makes it smaller, keeping its shape, is a little softer."""
    size, resample = _image_size(preprocessor), resample_name(preprocessor.get("resample", RESAMPLING["lanczos"]))
    return None if size is None or resample is None else ImageTransformConfig(size=size, resample=resample)


def _image_size(preprocessor: Mapping[str, Any]) -> tuple[int, int] | None:
    largest = preprocessor.get("max_image_size")
    side = largest.get("longest_edge") if isinstance(largest, Mapping) else None
    return None if side is None else (side, side)


def _processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    if transform.mode != "squash":
        raise ValueError(
            f"Idefics3's image processor only squashes images that it does not split, but image_transform.mode is "
            f"{transform.mode!r}; set it to squash before training."
        )
    height, width = transform.size
    images = {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "max_image_size": {"longest_edge": height},
        "do_image_splitting": False,
        "resample": int(RESAMPLING[transform.resample]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tower_of(config).pixel_mean),
        "image_std": list(tower_of(config).pixel_std),
        "do_pad": True,
    }
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": image_tokens(config)}
    return {"preprocessor_config.json": images, "processor_config.json": processor}


def _of_folder(config: HuggingFaceConfig) -> MultimodalFamily:
    return idefics3(decoder_of_folder(config.get("text_config", {}), "llama"))


def _of_config(config: MultimodalConfig) -> MultimodalFamily:
    return idefics3(part_of_config(config.decoder))


IDEFICS3 = CompositeFamily(("idefics3", "smolvlm"), _of_folder, _of_config)
