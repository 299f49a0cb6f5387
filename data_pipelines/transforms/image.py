"""Encoded images to pixels of one size, exactly as the exported image processor makes them.

An image is turned upright by its EXIF orientation; transparency is laid over white; every other mode is converted to
RGB as Pillow does. Normalisation is not done here: pixels cross to the device as bytes.
"""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.transforms.image_error import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

ORIENTATION_TAG = 0x0112

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class ImageTransformConfig(Config):
    """How an image of any size becomes one of the encoder's size."""

    size: tuple[int, int] = (224, 224)
    """Height and width of the result in pixels."""
    mode: Literal["squash", "pad", "crop"] = "squash"
    """squash: resize, changing the aspect ratio; pad: pad to a square with `fill`, then resize (LLaVA-1.5); crop:
    resize until the shorter side is the longer one of `size`, then cut out the middle (CLIP)."""
    fill: tuple[int, int, int] = (122, 116, 104)
    """Colour (red, green, blue, 0 to 255) beside a padded image; to be exported it must be the encoder's mean colour
    (`mean_colour`). The default is CLIP's."""
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """Interpolation of the resize."""
    max_pixels: int = Field(default=100_000_000, gt=0)
    """Images whose header says more pixels (width times height) are refused before they are decoded."""


def decode_image(data: bytes, config: ImageTransformConfig) -> np.ndarray:
    """Decodes and resizes one image.

    Returns:
        u8[H, W, 3] in RGB, of `config.size`.

    Raises:
        ImageError: the bytes are no image of a known format ("unsupported"), are damaged or cut short ("corrupt"), or
            would decode to more than `config.max_pixels` ("too_large").
    """
    return np.asarray(fit(decode_rgb(data, config.max_pixels), config))


def decode_rgb(data: bytes, max_pixels: int) -> Image.Image:
    """Decodes one image to upright RGB at its own size. Raises `ImageError` as `decode_image`."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except Image.UnidentifiedImageError:
        detail = f"{len(data)} bytes starting with {data[:12]!r} are not {', '.join(FORMATS)}"
        raise ImageError("unsupported", detail) from None
    except Exception as error:
        raise ImageError("corrupt", f"{type(error).__name__}: {error}") from error
    if image.width * image.height > max_pixels:
        raise ImageError("too_large", f"{image.width} x {image.height} pixels, at most {max_pixels} are allowed")
    try:
        image.load()
        return _rgb(_upright(image))
    except Exception as error:  # Pillow's decoders raise every kind of exception on damaged data.
        raise ImageError("corrupt", f"{image.format}: {type(error).__name__}: {error}") from error


def fit(image: Image.Image, config: ImageTransformConfig) -> Image.Image:
    """Brings an RGB image to `config.size`."""
    height, width = config.size
    resample = RESAMPLING[config.resample]
    if config.mode == "crop":
        short, long = min(image.size), max(image.size)
        edge = max(height, width)
        scaled = (edge, int(edge * long / short))
        image = image.resize(scaled if image.width <= image.height else scaled[::-1], resample)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    if config.mode == "pad":
        image = _squared(image, config.fill)
    return image.resize((width, height), resample)


def mean_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """The colour that LLaVA's processor pads with, for per-channel means between 0 and 1."""
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


def processor_config(config: ImageTransformConfig, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """The contents of `preprocessor_config.json`: its `pixel_values` are `(decode_image(...) / 255 - mean) / std`.

    Raises:
        ValueError: transformers has no image processor that does the same.
    """
    reason = not_exportable(config, mean)
    if reason is not None:
        raise ValueError(reason)
    height, width = config.size
    exact = {"height": height, "width": width}
    return {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_pad": config.mode == "pad",
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)} if config.mode == "crop" else exact,
        "resample": int(RESAMPLING[config.resample]),
        "do_center_crop": config.mode == "crop",
        "crop_size": exact,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [float(channel) for channel in mean],
        "image_std": [float(channel) for channel in std],
    }


def not_exportable(config: ImageTransformConfig, mean: Sequence[float]) -> str | None:
    """Why transformers' image processor cannot do the same as this transform, or None."""
    if config.mode == "pad" and config.fill != mean_colour(mean):
        return (
            f"image_transform.fill is {config.fill}, but transformers' LLaVA image processor pads with the encoder's "
            f"mean colour only; set fill to {mean_colour(mean)}, or mode to squash or crop, before training."
        )
    return None


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(ORIENTATION_TAG, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _squared(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    if image.width == image.height:
        return image
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
