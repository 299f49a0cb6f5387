"""What all ways of tiling share. Sizes are (height, width) in pixels, grids (rows, columns) of tiles."""

import numpy as np
from PIL import Image

Size = tuple[int, int]


def cut_grid(image: Image.Image, tile: Size) -> np.ndarray:
    """Cuts an RGB image that is full of tiles into u8[S, H, W, 3], row by row."""
    height, width = tile
    rows, columns = image.height // height, image.width // width
    pixels = np.asarray(image).reshape(rows, height, columns, width, 3)
    return pixels.swapaxes(1, 2).reshape(-1, height, width, 3)
