"""Images squashed into the grid of tiles nearest to their shape, a thumbnail after them (InternVL).

Described in https://arxiv.org/abs/2404.16821.
"""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from data_pipelines.rendered import ImageLayout
from data_pipelines.transforms.image import ImageTransformConfig, fit, resize
from data_pipelines.transforms.separate_tiles import TileMarks, separate_layout
from data_pipelines.transforms.tile_grid import Size, cut_grid


class DynamicConfig(Config):
    """The grid, of all within bounds, whose proportions are nearest to the image's."""

    newline: ClassVar[bool] = False

    kind: Literal["dynamic"] = "dynamic"
    min_tiles: int = Field(default=1, gt=0)
    """Tiles that a grid has at least."""
    max_tiles: int = Field(default=12, gt=1)
    """Tiles that a grid has at most, the thumbnail not counted."""
    thumbnail: bool = True
    """Whether a tile that shows the whole image comes after those of a grid of several."""

    @model_validator(mode="after")
    def _bounded(self) -> "DynamicConfig":
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles is {self.min_tiles}, but max_tiles is {self.max_tiles}")
        return self

    @property
    def most_slots(self) -> int:
        """Image slots that an image takes at most."""
        return self.max_tiles + self.thumbnail

    def whole_slot(self, slots: int) -> int | None:
        """Which of an image's slots shows the whole of it; None: none does."""
        return slots - 1 if self.thumbnail or slots == 1 else None

    def fingerprint(self) -> dict[str, Any]:
        """What layouts depend on, as JSON."""
        return self.model_dump(mode="json")

    def check_tile(self, tile: Size) -> None:
        """Tiles of every size will do."""

    def layout(self, size: Size, tile: Size, features: int, marks: TileMarks | None) -> ImageLayout:
        """Where the features of an image's tiles stand."""
        grid = self.grid(size, tile)
        return separate_layout(grid, self.thumbnail and grid != (1, 1), features, size, marks)

    def cut(self, pixels: np.ndarray, transform: ImageTransformConfig) -> np.ndarray:
        """Cuts u8[H, W, 3] into u8[S, H, W, 3]: the tiles of the grid row by row, then the thumbnail."""
        (height, width), grid = transform.size, self.grid(pixels.shape[:2], transform.size)
        scaled = resize(pixels, (grid[0] * height, grid[1] * width), transform)
        tiles = cut_grid(scaled, transform.size)
        if not self.thumbnail or grid == (1, 1):
            return tiles
        return np.concatenate([tiles, fit(pixels, transform)[None]])

    def grid(self, size: Size, tile: Size) -> Size:
        """Rows and columns of the grid for an image.

        Of grids that are equally near, a later and larger one is taken only where the image has more than half of its
        pixels.
        """
        ratio, area = size[1] / size[0], size[0] * size[1]
        best, least = (1, 1), float("inf")
        for rows, columns in self._grids():
            distance = abs(ratio - columns / rows)
            enough = area > 0.5 * tile[0] * tile[1] * rows * columns
            if distance < least or (distance == least and enough):
                best, least = (rows, columns), distance
        return best

    def _grids(self) -> list[Size]:
        """All grids within bounds by their number of tiles, the taller ones of as many first."""
        sides = range(1, self.max_tiles + 1)
        grids = [(rows, columns) for columns in sides for rows in sides]
        bounded = [grid for grid in grids if self.min_tiles <= grid[0] * grid[1] <= self.max_tiles]
        return sorted(bounded, key=lambda grid: grid[0] * grid[1])
