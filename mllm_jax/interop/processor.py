"""What a Hugging Face folder says about images and conversations, in this project's terms."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.tokenizer import Tokenizer
from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig, mean_colour
from data_pipelines.transforms.jinja import jinja
from data_pipelines.transforms.templates import (
    CHATML,
    GEMMA,
    IDEFICS2,
    IDEFICS3,
    INTERNVL,
    LLAMA2,
    LLAMA3,
    MISTRAL,
    PHI3,
    QWEN2_VL,
    SMOLVLM,
    TEMPLATES,
    VICUNA_V1,
    ChatTemplate,
    ImageFormat,
)

Json = Mapping[str, Any]

MARKS: tuple[tuple[tuple[str, ...], ChatTemplate], ...] = (
    (("<end_of_utterance>", "<|im_start|>"), SMOLVLM),
    (("<end_of_utterance>", "<|begin_of_text|>"), IDEFICS3),
    (("<end_of_utterance>",), IDEFICS2),
    (("<IMG_CONTEXT>",), INTERNVL),
    (("<|vision_start|>",), QWEN2_VL),
    (("<|im_start|>",), CHATML),
    (("<|start_header_id|>",), LLAMA3),
    (("<start_of_turn>",), GEMMA),
    (("<|end|>", "<|user|>"), PHI3),
    (("[INST]", "<<SYS>>"), LLAMA2),
    (("[INST]", " [/INST]"), MISTRAL),
    (("USER:",), VICUNA_V1),
)
"""Texts in a foreign Jinja template by which its family is known; the first whose texts are all there."""

IMAGE_COUNT = re.compile(r"(\bmark \* )\d+")
"""How often an exported template writes the image token for an image, which differs between models."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or an empty one where there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


CONFIGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("config.json", {}),
    ("open_clip_config.json", {"model_type": "open_clip"}),
)
"""Files that say what a folder's model is, the first that is there, and what is added to one that lacks it."""


def has_model_config(folder: Path) -> bool:
    """Whether the folder is one that `model_config` reads."""
    return any((folder / name).is_file() for name, _ in CONFIGS)


def model_config(folder: Path) -> dict[str, Any]:
    """Return what a folder's model is: its `config.json`, or what open_clip writes in its place.

    Raises:
        FileNotFoundError: there is neither.
    """
    for name, added in CONFIGS:
        if (folder / name).is_file():
            return read_json(folder / name) | added
    raise FileNotFoundError(f"{folder} is no Hugging Face model folder: it has no config.json.")


def image_processor_config(folder: Path) -> dict[str, Any]:
    """Return the image processor's config, from its own file or (transformers 5) from the processor's."""
    own = read_json(folder / "preprocessor_config.json")
    return own or read_json(folder / "processor_config.json").get("image_processor") or {}


def image_transform(preprocessor: Json) -> ImageTransformConfig | None:
    """Return the transform that equals an image processor's, or None where there is none.

    CLIP's, SigLIP's and LLaVA's processors have one; DINOv2's own, which resizes to 256 pixels and cuts out 224, has
    not.
    """
    size, crop = preprocessor.get("size"), preprocessor.get("crop_size")
    resample = resample_name(preprocessor.get("resample", RESAMPLING["bicubic"]))
    if not preprocessor.get("do_resize", True) or size is None or resample is None:
        return None
    common: dict[str, Any] = {"resample": resample}
    mean = preprocessor.get("image_mean")
    if mean is not None:
        common["fill"] = mean_colour(mean)
    exact, shortest = _height_and_width(size), _shortest_edge(size)
    if exact is not None and not preprocessor.get("do_center_crop", False):
        return ImageTransformConfig(size=exact, mode="pad" if preprocessor.get("do_pad") else "squash", **common)
    cut = _height_and_width(crop)
    if shortest is None or cut is None or not preprocessor.get("do_center_crop") or preprocessor.get("do_pad"):
        return None
    return ImageTransformConfig(size=cut, mode="crop", **common) if shortest == max(cut) else None


def output_size(preprocessor: Json) -> tuple[int, int] | None:
    """Return height and width of the images that a processor makes, or None where it does not say."""
    if preprocessor.get("do_center_crop"):
        return _height_and_width(preprocessor.get("crop_size"))
    return _height_and_width(preprocessor.get("size"))


def chat_template(folder: Path, tokenizer: Tokenizer, surrounds: ImageFormat | None = None) -> ChatTemplate | None:
    """Return the template of a folder's Jinja text: the one that writes it so, else the one it has the marks of.

    Args:
        folder: with a Jinja text.
        tokenizer: of the folder.
        surrounds: what the folder's processor writes around an image, so that the Jinja text does not.
    """
    text = IMAGE_COUNT.sub(r"\g<1>1", _jinja_text(folder))
    for template in TEMPLATES.values():
        bare = template.model_copy(update={"image": template.image.bare})
        if template.image == surrounds and _writes(bare, tokenizer, text):
            return template
    for template in TEMPLATES.values():
        if _writes(template, tokenizer, text):
            return template
    return next((template for marks, template in MARKS if all(mark in text for mark in marks)), None)


def _writes(template: ChatTemplate, tokenizer: Tokenizer, text: str) -> bool:
    try:
        return jinja(template, tokenizer) == text
    except ValueError:
        return False


def _jinja_text(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        text = read_json(folder / name).get("chat_template")
        if isinstance(text, str):
            return text
    return ""


def resample_name(number: int) -> Any:
    """Return our name of one of Pillow's filters, or None for a filter that we do not have."""
    return next((name for name, filter in RESAMPLING.items() if int(filter) == int(number)), None)


def _height_and_width(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    return None


def _shortest_edge(size: Any) -> int | None:
    return size.get("shortest_edge") if isinstance(size, Mapping) else size
