"""Random changes of training images: a crop, a mirror image, other colours. Each is a function of pixels and a seed.

The formulas are those of torchvision's `RandomResizedCrop`, `RandomHorizontalFlip` and `ColorJitter` on uint8 tensors;
the random numbers are not: they come from the seed alone, in an order of their own.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from data_pipelines.transforms.image import ImageTransformConfig, fit, resize

_TRIES = 10
_POSITION = 2 * _TRIES
_FLIP = _POSITION + 2
_COLOURS = _FLIP + 1
_DRAWS = _COLOURS + 6
_GREY = np.array([0.2989, 0.587, 0.114], np.float32)

Strength = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=100)]


class RandomCropConfig(Config):
    """A part of the image that is resized to the whole size, whatever `image_transform.mode` is."""

    scale: tuple[Share, Share] = (0.9, 1.0)
    """Least and greatest share of the image's area."""
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Least and greatest width over height of the part, before it is resized."""

    @model_validator(mode="after")
    def _ordered(self) -> "RandomCropConfig":
        for name, (least, greatest) in (("scale", self.scale), ("ratio", self.ratio)):
            if least > greatest:
                raise ValueError(f"{name} is [{least:g}, {greatest:g}]; write the lower bound first")
        return self


class AugmentationConfig(Config):
    """What happens to the images of a stage while it trains; validation, evaluation and generation see none of it.

    What is drawn depends on the run's data seed, the record's place, the image's number in it and the epoch: it is the
    same on any number of hosts and after a restart, and another one in the next epoch.
    """

    crop: RandomCropConfig | None = None
    """A random part of the image; null: the whole image. Boxes and points that a text states are not moved."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of the mirror image; "left" and letters in the texts stay what they are."""
    brightness: Strength = 0.0
    """Colours are multiplied by 1 - brightness (at least 0) to 1 + brightness."""
    contrast: Strength = 0.0
    """Likewise the distance of colours from the image's mean grey."""
    saturation: Strength = 0.0
    """Likewise the distance of colours from their own grey."""

    @model_validator(mode="after")
    def _changes(self) -> "AugmentationConfig":
        if self == type(self).model_construct():
            raise ValueError(
                "this changes no image; set crop, flip, brightness, contrast or saturation, or leave it out"
            )
        return self


def augmented(pixels: np.ndarray, config: AugmentationConfig, transform: ImageTransformConfig, seed: int) -> np.ndarray:
    """Changes an image and brings it to the size of `transform`.

    Args:
        pixels: u8[H, W, 3].
        config: what may happen.
        transform: how an image is brought to its size that is not cropped, and the interpolation.
        seed: of this image in this epoch.

    Returns:
        u8[H', W', 3]; H' and W' are `transform.size`.
    """
    draws = uniforms(seed)
    if config.crop is None:
        pixels = fit(pixels, transform)
    else:
        height, width = pixels.shape[:2]
        top, left, rows, columns = crop_box((height, width), config.crop, draws)
        part = np.ascontiguousarray(pixels[top : top + rows, left : left + columns])
        pixels = resize(part, transform.size, transform)
    if draws[_FLIP] < config.flip:
        pixels = pixels[:, ::-1]
    strengths = (config.brightness, config.contrast, config.saturation)
    changes = (adjust_brightness, adjust_contrast, adjust_saturation)
    for number in np.argsort(draws[_COLOURS + 3 : _COLOURS + 6], kind="stable"):
        if strengths[number]:
            factor = _between(max(0.0, 1 - strengths[number]), 1 + strengths[number], draws[_COLOURS + number])
            pixels = changes[number](pixels, factor)
    return pixels


def uniforms(seed: int) -> Sequence[float]:
    """The numbers in [0, 1) that an image's changes are made from; each change has places of its own."""
    # Raw PCG64 output is covered by NumPy's stability promise; the distributions of Generator are not.
    return ((np.random.PCG64(seed).random_raw(_DRAWS) >> np.uint64(11)) * 2.0**-53).tolist()


def crop_box(size: tuple[int, int], config: RandomCropConfig, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part of an image of this height and width.

    The first of ten parts of random area and ratio that fits; when none does, the greatest in the middle whose ratio is
    within its bounds.
    """
    height, width = size
    for turn in range(_TRIES):
        area = height * width * _between(*config.scale, draws[2 * turn])
        ratio = math.exp(_between(math.log(config.ratio[0]), math.log(config.ratio[1]), draws[2 * turn + 1]))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top = int(draws[_POSITION] * (height - rows + 1))
            return top, int(draws[_POSITION + 1] * (width - columns + 1)), rows, columns
    least, greatest = config.ratio
    rows, columns = height, width
    if width / height < least:
        rows = max(1, round(width / least))
    elif width / height > greatest:
        columns = max(1, round(height * greatest))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def adjust_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """`factor` times every colour of u8[H, W, 3]."""
    return _blended_levels(0.0, factor)[pixels]


def adjust_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Colours of u8[H, W, 3] at `factor` times their distance from the mean of the grey image."""
    return _blended_levels(float(grey(pixels).mean()), factor)[pixels]


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Colours of u8[H, W, 3] at `factor` times their distance from the grey of their pixel."""
    return _bytes(np.float32(factor) * pixels + np.float32(1 - factor) * grey(pixels)[..., None])


def grey(pixels: np.ndarray) -> np.ndarray:
    """u8[H, W] of u8[H, W, 3]: 0.2989 red + 0.587 green + 0.114 blue, cut to whole numbers."""
    red, green, blue = (pixels[..., channel] * _GREY[channel] for channel in range(3))
    return (red + green + blue).astype(np.uint8)


def _blended_levels(other: float, factor: float) -> np.ndarray:
    """u8[256]: every level at `factor` times its distance from `other`."""
    return _bytes(np.float32(factor) * np.arange(256, dtype=np.float32) + np.float32((1 - factor) * other))


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255).astype(np.uint8)


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw
