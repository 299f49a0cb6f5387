"""What Idefics2 and Idefics3 share in transformers: the tower, where the language model stands, squashed images."""

from dataclasses import replace
from typing import Any

import numpy as np

from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig
from mllm_jax.interop.families.composite import tower_of
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig, require_ours
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.interop.rules import Table
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.vit import FeatureConfig, ViTConfig

TORCH_LANES = (1, 4, 8, 16)
"""Numbers that torch makes at once, by processor; 1: at the end of a sequence."""

_FEATURES = FeatureConfig(layer=-1, post_norm=True)


def our_tower(family: str, config: HuggingFaceConfig) -> ViTConfig:
    """From a `vision_config`."""
    tower = SIGLIP.from_hugging_face(config)
    _check_positions(family, tower)
    return tower.model_copy(update={"features": _FEATURES})


def their_tower(family: str, config: MultimodalConfig, model_type: str) -> dict[str, Any]:
    """The inverse of `our_tower`."""
    _check_positions(family, tower_of(config))
    require_ours(family, tower_of(config), features=_FEATURES)
    tower = SIGLIP.to_hugging_face(tower_of(config))
    del tower["architectures"], tower["vision_use_head"]
    return tower | {"model_type": model_type}


def _check_positions(family: str, encoder: ViTConfig) -> None:
    """transformers finds a patch's position by fractions of the image, which for some grids rounds to a neighbour's."""
    side = encoder.grid[0]
    fractions = np.arange(side, dtype=np.float32) * np.float32(1 / side)
    for lanes in TORCH_LANES:
        found = np.searchsorted(_borders(side, lanes), fractions, side="right")
        if not np.array_equal(found, np.arange(side)):
            raise FamilyError(
                f"{family}: transformers rounds the positions of {side} patches a side so that some are used twice, "
                "at least on some processors; choose another encoder.image_size or encoder.patch_size."
            )


def _borders(side: int, lanes: int) -> np.ndarray:
    """As torch counts from 1 / side: the first of every `lanes` numbers is rounded, the others start there."""
    step, numbers = 1 / side, np.arange(side - 1)
    within = numbers % lanes
    firsts = (step + (numbers - within) * step).astype(np.float32).astype(np.float64)
    return (firsts + within * step).astype(np.float32)


def text_model(family: str, decoder: Family[DecoderConfig]) -> Table:
    """The table of a decoder as a part of a model that keeps its output projection apart."""
    table = decoder.table
    strange = [rule.theirs for rule in table.rules if not rule.theirs.startswith(("model.", "lm_head."))]
    if strange:
        raise FamilyError(f"{family} models have no decoder of family {decoder.name!r}: {strange[0]} has no place.")
    return Table(
        rules=tuple(replace(rule, theirs=_in_text_model(rule.theirs)) for rule in table.rules),
        ignored=tuple(pattern.replace(r"model\.", r"model\.text_model\.", 1) for pattern in table.ignored),
        copies=tuple((_in_text_model(copy), _in_text_model(original)) for copy, original in table.copies),
    )


def _in_text_model(name: str) -> str:
    return name.replace("model.", "model.text_model.", 1) if name.startswith("model.") else name


def squashing_processor(family: str, config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """A `preprocessor_config.json` that brings every image to one size and splits none.

    Raises:
        ValueError: images are not squashed.
    """
    if transform.mode != "squash":
        raise ValueError(
            f"{family}'s image processor only squashes images that it does not split, but image_transform.mode is "
            f"{transform.mode!r}; set it to squash before training."
        )
    height, width = transform.size
    return {
        "image_processor_type": f"{family}ImageProcessor",
        "processor_class": f"{family}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_image_splitting": False,
        "resample": int(RESAMPLING[transform.resample]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tower_of(config).pixel_mean),
        "image_std": list(tower_of(config).pixel_std),
        "do_pad": True,
    }
