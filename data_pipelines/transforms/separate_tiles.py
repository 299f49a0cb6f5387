"""Tiles that stay apart: each one's features stand together, in the order of the slots, with marks between them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.rendered import MARK, ImageLayout
from data_pipelines.transforms.tile_grid import Size


@dataclass(frozen=True, slots=True)
class TileMarks:
    """The tokens that stand before the tiles of an image."""

    grid: Mapping[Size, tuple[int, ...]]
    """Before the tile of a row and a column, both from 0."""
    whole: tuple[int, ...]
    """Before the tile that shows the whole image, which comes last."""


def separate_layout(grid: Size, whole: bool, features: int, size: Size, marks: TileMarks | None = None) -> ImageLayout:
    """The layout of an image in a grid of tiles.

    Args:
        grid: rows and columns of tiles.
        whole: whether a tile that shows the whole image comes after those of the grid.
        features: that the connector makes of one tile.
        size: of the image in pixels.
        marks: what stands before the tiles; None: nothing does.
    """
    slots = grid[0] * grid[1] + whole
    if marks is None:
        return ImageLayout(slots, np.arange(slots * features, dtype=np.int32), size)
    before = [marks.grid[row, column] for row in range(grid[0]) for column in range(grid[1])]
    before += [marks.whole] * whole
    index: list[np.ndarray] = []
    for slot, tokens in enumerate(before):
        index.append(np.full(len(tokens), MARK, np.int32))
        index.append(np.arange(slot * features, (slot + 1) * features, dtype=np.int32))
    return ImageLayout(slots, np.concatenate(index), size, tuple(token for tokens in before for token in tokens))
