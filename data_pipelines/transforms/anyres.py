"""Images of any size in a grid of tiles whose features are merged to one picture (LLaVA-NeXT).

An image is scaled into a grid of tiles, padded to fill it and cut; a base tile shows the whole of it. The features of
the tiles are merged to one picture, what shows padding is cut off, and a learned newline ends every row of it
(https://llava-vl.github.io/blog/2024-01-30-llava-next/). Sizes and grids are (height, width) and (rows, columns).
"""

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.rendered import NEWLINE, ImageLayout
from data_pipelines.transforms.image import ImageTransformConfig, fit, resize
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.tile_grid import Size, cut_grid

Tiles = Annotated[int, Field(gt=0)]


class AnyResConfig(Config):
    """Which grid, and what of the merged features the decoder sees."""

    kind: Literal["anyres"] = "anyres"
    grids: tuple[tuple[Tiles, Tiles], ...] = Field(default=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)), min_length=1)
    """Grids (rows, columns of tiles) to choose from: the one that shows most pixels of the image, then the smallest;
    the first of those that are alike."""
    max_tiles: int | None = Field(default=None, gt=0)
    """Choose among all grids of at most this many tiles, instead of `grids`."""
    base: bool = True
    """Whether a tile that shows the whole image comes before those of the grid."""
    newline: bool = True
    """Whether a learned embedding ends every row of the merged grid."""
    unpad: bool = True
    """Whether features that show only padding are cut off."""

    @property
    def choices(self) -> tuple[Size, ...]:
        """The grids to choose from."""
        if self.max_tiles is None:
            return self.grids
        sides = range(1, self.max_tiles + 1)
        return tuple((rows, columns) for rows in sides for columns in sides if rows * columns <= self.max_tiles)

    @property
    def most_slots(self) -> int:
        """Image slots that an image takes at most."""
        return max(rows * columns for rows, columns in self.choices) + self.base

    def whole_slot(self, slots: int) -> int | None:
        """Which of an image's slots shows the whole of it; None: none does."""
        return 0 if self.base or slots == 1 else None

    def fingerprint(self) -> dict[str, Any]:
        """What layouts depend on, as JSON."""
        own = self.model_dump(mode="json", include={"base", "newline", "unpad"})
        return {"grids": [list(grid) for grid in self.choices], **own}

    def check_tile(self, tile: Size) -> None:
        """Tiles of every size will do."""

    def layout(self, size: Size, tile: Size, features: Size) -> ImageLayout:
        """Which feature each of an image's tokens is.

        Args:
            size: of the image in pixels.
            tile: of a tile in pixels.
            features: rows and columns of what the connector makes of one tile.

        Raises:
            ImageError: "too_thin": an image that is all padding, where there is no base tile to show it.
        """
        rows, columns = best_grid(size, self, tile)
        count = features[0] * features[1]
        numbers = np.arange(rows * columns * count, dtype=np.int32) + self.base * count
        tiles = numbers.reshape(rows, columns, *features)
        merged = tiles.swapaxes(1, 2).reshape(rows * features[0], columns * features[1])
        if self.unpad:
            merged = _unpadded(merged, size)
        if self.newline:
            merged = np.pad(merged, ((0, 0), (0, 1)), constant_values=NEWLINE)
        if not merged.size and not self.base:
            raise ImageError("too_thin", f"{size[1]} x {size[0]} shows less than a row of features in its tiles")
        base = np.arange(self.base * count, dtype=np.int32)
        return ImageLayout(rows * columns + self.base, np.concatenate([base, merged.reshape(-1)]), size)

    def cut(self, pixels: np.ndarray, transform: ImageTransformConfig) -> np.ndarray:
        """Cuts u8[H, W, 3] into u8[S, H, W, 3]: the base tile, if there is one, and those of the grid row by row."""
        rows, columns = best_grid(pixels.shape[:2], self, transform.size)
        area = rows * transform.size[0], columns * transform.size[1]
        scaled = fitted_size(pixels.shape[:2], area)
        canvas = np.zeros((*area, 3), np.uint8)
        top, left = (area[0] - scaled[0]) // 2, (area[1] - scaled[1]) // 2
        canvas[top : top + scaled[0], left : left + scaled[1]] = resize(pixels, scaled, transform)
        tiles = cut_grid(canvas, transform.size)
        return np.concatenate([fit(pixels, transform)[None], tiles]) if self.base else tiles


def best_grid(size: Size, config: AnyResConfig, tile: Size) -> Size:
    """Rows and columns of the grid for an image.

    Args:
        size: of the image in pixels.
        tile: of a tile in pixels.
    """
    height, width = size

    def merit(grid: Size) -> tuple[int, int]:
        area = grid[0] * tile[0], grid[1] * tile[1]
        scale = min(area[1] / width, area[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, -area[0] * area[1]

    return max(config.choices, key=merit)


def fitted_size(size: Size, area: Size) -> Size:
    """Height and width to which an image is scaled so that it just fits into `area`, all in pixels."""
    down, across = area[0] / size[0], area[1] / size[1]
    if across < down:
        return min(math.ceil(size[0] * across), area[0]), area[1]
    return area[0], min(math.ceil(size[1] * down), area[1])


def _unpadded(merged: np.ndarray, size: Size) -> np.ndarray:
    """Cuts off the rows above and below, or the columns beside, that an image of `size` does not reach."""
    height, width = size
    rows, columns = merged.shape
    # An image of the grid's own shape may come out a little below a whole number of rows.
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        return merged[margin : rows - margin]
    margin = (columns - int(round(width * (rows / height), 7))) // 2
    return merged[:, margin : columns - margin]
