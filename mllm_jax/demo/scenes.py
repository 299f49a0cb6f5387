"""Scenes of handwritten digits: one to four of them in several colours, at random places on a dark background.

The digits are scikit-learn's `load_digits`: 1,797 images of 8 x 8 pixels, in the order in which their writers wrote
them. A scene says what it shows, so that captions, questions and boxes are exact.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field

from data_pipelines.config_class import Config

Split = Literal["train", "test"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 50, 45),
    "green": (50, 190, 70),
    "blue": (65, 110, 250),
    "yellow": (245, 215, 50),
    "purple": (180, 75, 225),
    "white": (240, 240, 240),
}
"""Name -> typical 8-bit RGB; a placed digit's own colour strays a little from it."""

COLOUR_NAMES = tuple(COLOURS)

VISIBLE = 80
"""Of 255: ink that covers less than about a third of a pixel is not part of a digit's box."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are exclusive, the origin is the top left corner."""


class SceneConfig(Config):
    """What scenes look like."""

    size: int = Field(default=72, ge=32)
    """Height and width of a scene in pixels."""
    cells: int = Field(default=3, ge=2)
    """A scene has cells x cells places, and a place holds one digit at most, so that digits never touch."""
    jitter: int = Field(default=2, ge=0)
    """Pixels that a digit strays from the middle of its place, either way, on each axis."""
    digits: tuple[int, int] = (1, 4)
    """Fewest and most digits of a scene."""
    digit_size: tuple[float, float] = (0.75, 0.95)
    """Smallest and largest height of a digit, as a share of a cell's height."""
    rotation: float = Field(default=12.0, ge=0)
    """Training digits are turned by up to this many degrees either way; held-out digits stay as they were written."""
    stretch: float = Field(default=0.15, ge=0, lt=1)
    """Training digits are made up to this share wider or narrower; held-out digits keep their proportions."""
    held_out: tuple[int, int] = (0, 400)
    """Digit images [first, last) of scikit-learn's order that only test scenes show: about three writers' work."""


@dataclass(frozen=True, slots=True)
class PlacedDigit:
    value: int
    colour: str
    box: Box
    """The tight box around the ink."""
    source: int
    """Index of the digit's image in scikit-learn's order."""

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, slots=True)
class Scene:
    digits: tuple[PlacedDigit, ...]
    """In reading order, cell by cell. No two have the same value and colour."""
    pixels: UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True, slots=True)
class DigitImages:
    """The handwritten digits of one split."""

    ink: UInt8[np.ndarray, "M 10 10"]
    """0 = paper, 255 = full ink; 8 x 8 pixels within a border of paper."""
    values: np.ndarray
    """int[M]; the digit that each image shows."""
    sources: np.ndarray
    """int[M]; the index of each image in scikit-learn's order."""


def load_digit_images(split: Split, config: SceneConfig) -> DigitImages:
    """The digit images of a split; the two splits share none.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The demo's handwritten digits come with scikit-learn, which is not installed: "
            "run `pip install 'mllm-jax[demo]'`."
        ) from error
    digits = load_digits()
    index = np.arange(len(digits.target))
    held_out = (index >= config.held_out[0]) & (index < config.held_out[1])
    chosen = index[held_out if split == "test" else ~held_out]
    ink = np.clip(np.rint(digits.images[chosen] * (255 / 16)), 0, 255).astype(np.uint8)
    return DigitImages(ink=np.pad(ink, ((0, 0), (1, 1), (1, 1))), values=digits.target[chosen], sources=chosen)


def compose(images: DigitImages, config: SceneConfig, random: np.random.Generator, *, augment: bool) -> Scene:
    """One scene; the same generator state gives the same scene.

    Each number of digits is equally likely. `augment` turns and stretches the digits.
    """
    count = int(random.integers(config.digits[0], config.digits[1] + 1))
    canvas = random.uniform(10, 60, size=3) + random.normal(0, 3, size=(config.size, config.size, 1))
    cells = sorted(random.permutation(config.cells**2)[:count].tolist())
    placed: list[PlacedDigit] = []
    while len(placed) < count:
        chosen = int(random.integers(len(images.values)))
        value, colour = int(images.values[chosen]), COLOUR_NAMES[int(random.integers(len(COLOUR_NAMES)))]
        if any(other.value == value and other.colour == colour for other in placed):
            continue
        stencil = _stencil(images.ink[chosen], config, random, augment=augment)
        box = _place(stencil.shape, divmod(cells[len(placed)], config.cells), config, random)
        _paint(canvas, stencil, box, COLOURS[colour], random)
        placed.append(PlacedDigit(value=value, colour=colour, box=box, source=int(images.sources[chosen])))
    return Scene(digits=tuple(placed), pixels=np.clip(np.rint(canvas), 0, 255).astype(np.uint8))


def _stencil(
    ink: UInt8[np.ndarray, "10 10"], config: SceneConfig, random: np.random.Generator, *, augment: bool
) -> Float[np.ndarray, "h w"]:
    """How much ink covers each pixel (0..1) of a digit drawn at a random size, cut to the ink and to a cell."""
    cell = config.size // config.cells
    height = random.uniform(*config.digit_size) * cell
    angle = math.radians(random.uniform(-config.rotation, config.rotation)) if augment else 0.0
    stretch = 1 + random.uniform(-config.stretch, config.stretch) if augment else 1.0
    side = math.ceil(height * 1.5)
    scale = 8 / height
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    centre = side / 2
    # Pillow asks for the map from a drawn pixel back to the digit's image, whose centre is (4, 4) within a border of 1.
    affine = (
        cosine / stretch,
        sine / stretch,
        5 - centre * (cosine + sine) / stretch,
        -sine,
        cosine,
        5 - centre * (cosine - sine),
    )
    drawn = Image.fromarray(ink).transform(
        (side, side), Image.Transform.AFFINE, affine, resample=Image.Resampling.BILINEAR
    )
    cover = np.asarray(drawn)
    rows = np.flatnonzero((cover >= VISIBLE).any(axis=1))
    columns = np.flatnonzero((cover >= VISIBLE).any(axis=0))
    drawn_ink = cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 255.0
    return drawn_ink[: cell - 1, : cell - 1]


def _place(shape: tuple[int, ...], cell: tuple[int, int], config: SceneConfig, random: np.random.Generator) -> Box:
    """A random box of this height and width in a cell (row, column); the cell's last row and column stay free."""
    side = config.size // config.cells
    y0, x0 = (
        cell_index * side + min(max((side - length) // 2 + stray, 0), side - 1 - length)
        for cell_index, length, stray in zip(
            cell, shape, random.integers(-config.jitter, config.jitter + 1, size=2).tolist(), strict=True
        )
    )
    return (x0, y0, x0 + shape[1], y0 + shape[0])


def _paint(
    canvas: Float[np.ndarray, "H W 3"],
    stencil: Float[np.ndarray, "h w"],
    box: Box,
    colour: tuple[int, int, int],
    random: np.random.Generator,
) -> None:
    x0, y0, x1, y1 = box
    shade = np.array(colour) + random.uniform(-15, 15, size=3)
    cover = stencil[:, :, None]
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - cover) + shade * cover
