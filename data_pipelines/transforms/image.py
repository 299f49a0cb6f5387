"""Encoded images to pixels of one size, as the exported image processor makes them.

An image is turned upright by its EXIF orientation; transparency is laid over white; every other mode is converted to
RGB as Pillow does. Normalisation is not done here: pixels cross to the device as bytes.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import simplejpeg
from PIL import Image
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.image_header import TURNS, open_header, orientation, upright_size
from data_pipelines.transforms.jpeg_markers import jpeg_markers
from data_pipelines.transforms.resampling import available, resized

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_SCAN = b"\xff\xda"
"""The marker that begins a scan; compressed pixels never hold it."""
_SCANS_LIMIT = 100
"""Scans of a JPEG: progressive ones have about ten, and each costs a pass over all pixels however few its bytes are."""

Pixels = Annotated[int, Field(gt=0)]
Level = Annotated[int, Field(ge=0, le=255)]


class ImageTransformConfig(Config):
    """How an image of any size becomes one of the encoder's size."""

    size: tuple[Pixels, Pixels] = (224, 224)
    """Height and width of the result in pixels."""
    mode: Literal["squash", "pad", "crop"] = "squash"
    """squash: resize, changing the aspect ratio; pad: pad to a square with `fill`, then resize (LLaVA-1.5); crop:
    resize until the shorter side is the longer one of `size`, then cut out the middle (CLIP)."""
    fill: tuple[Level, Level, Level] = (122, 116, 104)
    """Colour (red, green, blue, 0 to 255) beside a padded image; to be exported it must be the encoder's mean colour
    (`mean_colour`). The default is CLIP's."""
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """Interpolation of the resize."""
    resize_with: Literal["pillow", "fast_image_resize"] = "pillow"
    """pillow: byte for byte what transformers' image processors make with the Pillow that is installed;
    fast_image_resize: within 2 levels of Pillow 13 in a fifth of its time, for training on much data. "nearest" is
    always Pillow's."""
    max_pixels: int = Field(default=64_000_000, gt=0)
    """Images that take more pixels (width times height, padding and resizing included) are refused by their header,
    before they are decoded."""

    @model_validator(mode="after")
    def _library_is_there(self) -> "ImageTransformConfig":
        if self.resize_with == "fast_image_resize" and not available():
            raise ValueError(
                "resize_with is fast_image_resize, but its package cykooz-resizer is not installed (there is no wheel "
                "of it for Linux on ARM); install it, or set resize_with to pillow"
            )
        return self


def decode_image(data: bytes, config: ImageTransformConfig) -> np.ndarray:
    """Decodes and resizes one image.

    Returns:
        u8[H, W, 3] in RGB, of `config.size`.

    Raises:
        ImageError: the bytes are no image of a known format ("unsupported"), are damaged or cut short ("corrupt"), or
            would take more than `config.max_pixels` while decoded, padded or resized ("too_large").
    """
    return decode_with(data, config, lambda pixels: fit(pixels, config))


def stated_size(data: bytes, config: ImageTransformConfig) -> tuple[int, int]:
    """Height and width in pixels of an image turned upright, by its header; no pixel is decoded.

    Raises:
        ImageError: as `decode_image`, as far as the header tells.
    """
    size = upright_size(data, lambda: data)
    _check_size(size, config)
    return size


def decode_with(data: bytes, config: ImageTransformConfig, arrange: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Decodes one image and returns what `arrange` makes of it, u8[H, W, 3] upright; errors as `decode_image`."""
    try:
        markers = jpeg_markers(data)
        if markers is not None and not markers.one_scan:
            _check_scans(data)
        pixels = None if markers is None or markers.metadata else _plain_jpeg(data, config)
        return arrange(_upright_rgb(data, config) if pixels is None else pixels)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise every kind of exception on damaged data.
        raise ImageError("corrupt", f"{type(error).__name__}: {error}") from error


def fit(pixels: np.ndarray, config: ImageTransformConfig) -> np.ndarray:
    """Brings u8[H, W, 3] to `config.size`."""
    height, width = config.size
    if config.mode == "crop":
        short, long = min(pixels.shape[:2]), max(pixels.shape[:2])
        edge = max(height, width)
        scaled = (edge, int(edge * long / short))
        if pixels.shape[0] > pixels.shape[1]:
            scaled = scaled[::-1]
        window = (scaled[0] - height) // 2, (scaled[1] - width) // 2, height, width
        return resize(pixels, scaled, config, window)
    if config.mode == "pad":
        pixels = _squared(pixels, config.fill)
    return resize(pixels, config.size, config)


def resize(
    pixels: np.ndarray,
    target: tuple[int, int],
    config: ImageTransformConfig,
    window: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Resizes u8[H, W, 3] with the interpolation of `config`.

    Args:
        pixels: of the image.
        target: height and width of the whole result.
        config: of which `size` and `mode` are not asked.
        window: top, left, height and width of the part of the result that is returned; None: all of it.
    """
    if config.resample != "nearest" and config.resize_with == "fast_image_resize":
        whole = resized(pixels, target, config.resample)
    else:
        whole = np.asarray(Image.fromarray(pixels).resize(target[::-1], RESAMPLING[config.resample]))
    top, left, height, width = window or (0, 0, *target)
    return whole[top : top + height, left : left + width]


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


def _check_size(size: tuple[int, int], config: ImageTransformConfig) -> None:
    """Raises `ImageError` where an image of this height and width takes too many pixels."""
    pixels = max(size[0] * size[1], _largest_step(size, config))
    if pixels > config.max_pixels:
        raise ImageError("too_large", f"{size[1]} x {size[0]} takes {pixels} of {config.max_pixels} pixels")


def _check_scans(data: bytes) -> None:
    """Raises `ImageError` for a JPEG of so many scans that a small file would be decoded for hours."""
    scans = data.count(_SCAN)
    if scans > _SCANS_LIMIT:
        raise ImageError("too_large", f"a JPEG of {scans} scans takes a pass over its pixels for each of them")


def _largest_step(size: tuple[int, int], config: ImageTransformConfig) -> int:
    """Pixels of the largest image on the way: a long thin strip makes a huge square."""
    short, long = min(size), max(size)
    if config.mode == "pad":
        return long * long
    if config.mode == "crop":
        return max(config.size) ** 2 * long // short
    return config.size[0] * config.size[1]


def _plain_jpeg(data: bytes, config: ImageTransformConfig) -> np.ndarray | None:
    """Pixels of a JPEG without the metadata that could turn it, as most of web data are; None where Pillow must look.

    Pillow would read the header in ten times the time, and no other thread can run meanwhile.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size((height, width), config)
    return _decoded_jpeg(data) if colours in ("YCbCr", "Gray") else None


def _upright_rgb(data: bytes, config: ImageTransformConfig) -> np.ndarray:
    header = open_header(data)
    _check_size((header.height, header.width), config)
    pixels = _decoded_jpeg(data) if header.format == "JPEG" and header.mode in ("RGB", "L") else None
    if pixels is None or pixels.shape[1::-1] != header.size:
        header.load()
        pixels = np.asarray(_rgb(header))
    turn = TURNS.get(orientation(header))
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def _decoded_jpeg(data: bytes) -> np.ndarray | None:
    """Pillow's pixels (both use libjpeg-turbo) in half the time; None for files that need Pillow's leniency."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _squared(pixels: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = max(height, width)
    if width == height:
        return pixels
    square = np.empty((side, side, 3), np.uint8)
    square[:] = fill
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
