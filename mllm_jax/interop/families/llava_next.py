"""LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next/): LLaVA's parts, images as tiles, a newline."""

from dataclasses import replace
from typing import Any

from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.image import ImageTransformConfig
from mllm_jax.interop.families.composite import CompositeFamily, MultimodalFamily, Processor, ProcessorConfig
from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.llava import LLAVA
from mllm_jax.interop.processor import image_transform, output_size
from mllm_jax.interop.rules import Rule, Table
from mllm_jax.models.multimodal import MultimodalConfig

_GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""What transformers takes for `image_grid_pinpoints` that a config.json leaves out."""

_NEWLINE = Table((Rule("image_newline", "connector/newline"),), renames=((r"model\.(?=image_newline$)", ""),))


def llava_next(whole: MultimodalFamily) -> MultimodalFamily:
    """The family of LLaVA-NeXT models made of the parts of a LLaVA family."""

    def from_hugging_face(config: HuggingFaceConfig) -> MultimodalConfig:
        model = whole.from_hugging_face(config)
        if model.encoder.feature_grid.extra:
            raise FamilyError(
                "LLaVA-NeXT: vision_feature_select_strategy 'full' would put this vision tower's class token among "
                "the patches of a tile; only 'default' can be imported."
            )
        tiling = AnyResConfig(grids=_grids(config.get("image_grid_pinpoints") or _GRIDS, model.encoder.image_size))
        return model.model_copy(update={"tiling": tiling})

    def to_hugging_face(config: MultimodalConfig) -> dict[str, Any]:
        return whole.to_hugging_face(_untiled(config)) | {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "model_type": "llava_next",
            "image_grid_pinpoints": _their_grids(config),
        }

    def processor_files(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
        changes = {
            "preprocessor_config.json": _preprocessor(config, transform),
            "processor_config.json": {"processor_class": "LlavaNextProcessor"},
        }
        files = whole.processor.files(_untiled(config), transform)
        return {name: contents | changes[name] for name, contents in files.items()}

    return replace(
        whole,
        name="llava_next" + whole.name.removeprefix("llava"),
        model_types=("llava_next",),
        table=whole.table + _NEWLINE,
        from_hugging_face=from_hugging_face,
        to_hugging_face=to_hugging_face,
        processor=Processor(_image_transform, output_size, processor_files),
    )


def _untiled(config: MultimodalConfig) -> MultimodalConfig:
    return config.model_copy(update={"tiling": None})


def _grids(pinpoints: Any, tile: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of tiles, from heights and widths in pixels."""
    height, width = tile
    uneven = [list(size) for size in pinpoints if size[0] % height or size[1] % width]
    if uneven:
        raise FamilyError(
            f"LLaVA-NeXT: image_grid_pinpoints holds {uneven} in config.json, which tiles of {height} x {width} pixels "
            "do not fill."
        )
    return tuple((rows // height, columns // width) for rows, columns in pinpoints)


def _their_grids(config: MultimodalConfig) -> list[list[int]]:
    tiling, (height, width) = config.tiling, config.encoder.image_size
    if not isinstance(tiling, AnyResConfig) or not (tiling.base and tiling.newline and tiling.unpad):
        raise FamilyError(
            "LLaVA-NeXT models have tiles, with a base tile, newlines and padding cut off, but this one has tiling "
            f"{tiling!r}."
        )
    if height != width:
        raise FamilyError(f"LLaVA-NeXT models have square tiles, but this one's are {height} x {width} pixels.")
    return [[rows * height, columns * width] for rows, columns in tiling.choices]


def _image_transform(preprocessor: ProcessorConfig) -> ImageTransformConfig | None:
    """Every tile is resized and cut out at its own size, which changes nothing; the base tile is squashed to it."""
    size = output_size(preprocessor)
    transform = image_transform({**preprocessor, "do_pad": False})
    if transform is None or size is None or size[0] != size[1]:
        return None
    return transform.model_copy(update={"mode": "squash"})


def _preprocessor(config: MultimodalConfig, transform: ImageTransformConfig) -> dict[str, Any]:
    """Where their image processor's config differs from LLaVA's."""
    if transform.mode != "squash":
        raise ValueError(
            f"image_transform.mode is {transform.mode!r}, but transformers' LLaVA-NeXT image processor squashes an "
            "image into its base tile; set mode to squash before training."
        )
    return {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "image_grid_pinpoints": _their_grids(config),
        "size": {"shortest_edge": transform.size[0]},
        "do_center_crop": True,
        "do_pad": True,
    }


LLAVA_NEXT = CompositeFamily(
    ("llava_next",),
    of_folder=lambda config: llava_next(LLAVA.of_folder(config)),
    of_config=lambda config: llava_next(LLAVA.of_config(config)),
    tilings=("anyres",),
)
