"""What all ways of tiling share. Sizes are (height, width) in pixels, grids (rows, columns) of tiles."""

import numpy as np

Size = tuple[int, int]


def cut_grid(pixels: np.ndarray, tile: Size) -> np.ndarray:
    """Cuts the u8[H, W, 3] of an image that is full of tiles into u8[S, H, W, 3], row by row."""
    height, width = tile
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    tiles = pixels.reshape(rows, height, columns, width, 3)
    return tiles.swapaxes(1, 2).reshape(-1, height, width, 3)
