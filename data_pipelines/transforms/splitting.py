"""Images split into tiles that stay apart, the whole image after them (Idefics3, https://arxiv.org/abs/2408.12637)."""

import math
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.rendered import ImageLayout
from data_pipelines.transforms.image import ImageTransformConfig, fit, resize
from data_pipelines.transforms.separate_tiles import TileMarks, separate_layout
from data_pipelines.transforms.tile_grid import Size, cut_grid

LONGEST = 4096
"""Pixels of the longer side that transformers scales an image to at most."""


class SplittingConfig(Config):
    """The longer side is scaled to `longest_side` tiles, the shorter one in proportion and up to whole tiles."""

    newline: ClassVar[bool] = False

    kind: Literal["splitting"] = "splitting"
    longest_side: int = Field(default=4, ge=2, le=6)
    """Tiles along an image's longer side."""

    @property
    def most_slots(self) -> int:
        """Image slots that an image takes at most."""
        return self.longest_side**2 + 1

    def whole_slot(self, slots: int) -> int | None:
        """Which of an image's slots shows the whole of it."""
        return slots - 1

    def fingerprint(self) -> dict[str, Any]:
        """What layouts depend on, as JSON."""
        return self.model_dump(mode="json")

    def check_tile(self, tile: Size) -> None:
        """Raises ValueError where images cannot be split into tiles of this size."""
        if tile[0] != tile[1] or tile[0] % 2 or self.longest_side * tile[0] > LONGEST:
            raise ValueError(
                f"tiling of kind 'splitting' wants square tiles of an even side, {self.longest_side} of which are at "
                f"most {LONGEST} pixels, but the encoder's images are {tile[0]} x {tile[1]}"
            )

    def layout(self, size: Size, tile: Size, features: int, marks: TileMarks | None) -> ImageLayout:
        """Where the features of an image's tiles stand, and the marks between them."""
        height, width = self.scaled_sizes(size, tile[0])[1]
        return separate_layout((height // tile[0], width // tile[1]), True, features, size, marks)

    def cut(self, pixels: np.ndarray, transform: ImageTransformConfig) -> np.ndarray:
        """Cuts u8[H, W, 3] into u8[S, H, W, 3]: the tiles of the grid row by row, then the whole."""
        for height, width in self.scaled_sizes(pixels.shape[:2], transform.size[0]):
            pixels = resize(pixels, (height, width), transform)
        return np.concatenate([cut_grid(pixels, transform.size), fit(pixels, transform)[None]])

    def scaled_sizes(self, size: Size, side: int) -> tuple[Size, Size]:
        """The sizes to which an image is scaled one after the other: nearly in proportion, then to whole tiles.

        The first could be left out but for the softer pixels that it gives, which models are used to.

        Args:
            size: of the image.
            side: of a tile in pixels, an even number.
        """
        longest, wide = self.longest_side * side, size[1] >= size[0]

        def shorter(ratio: float) -> int:
            return int(longest / ratio) if wide else int(longest * ratio)

        # The roundings are transformers', operation by operation: others would give some images other tiles.
        near = shorter(size[1] / size[0])
        near = max(near + near % 2, 1)
        full = math.ceil(shorter(longest / near if wide else near / longest) / side) * side
        return ((near, longest), (full, longest)) if wide else ((longest, near), (longest, full))
