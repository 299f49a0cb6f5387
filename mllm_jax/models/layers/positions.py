"""Resizing a table of learned positions to another grid of patches."""

from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)

CUBIC_A = -0.75
"""The cubic's free parameter, as in torch and OpenCV (Pillow and jax.image take -0.5)."""


def bicubic_weights(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """The matrix that resamples `source` evenly spaced values to `target` of them.

    Keys' cubic convolution (https://doi.org/10.1109/TASSP.1981.1163711) at pixel centres (align_corners=False),
    clamped at the edges and not widened when shrinking (antialias=False): torch's `interpolate(mode="bicubic")`.
    """
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((target, source))
    for tap in range(4):
        columns = np.clip(first + tap, 0, source - 1)
        np.add.at(weights, (np.arange(target), columns), _cubic(np.abs(centres - (first + tap))))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def resize_positions(
    table: Float[AnyArray, "T D"], source: tuple[int, int], target: tuple[int, int]
) -> Float[AnyArray, "U D"]:
    """Resizes the patches' part of a position table from `source` rows and columns to `target`.

    Rows of the table before the last `source[0] * source[1]` (a class token) are kept as they are. Works on NumPy
    arrays (when weights are loaded) and on traced arrays (in the forward pass).
    """
    if source == target:
        return table
    prefix = table.shape[0] - source[0] * source[1]
    width = table.shape[1]
    down, across = bicubic_weights(source[0], target[0]), bicubic_weights(source[1], target[1])
    grid = table[prefix:].reshape(*source, width).astype(np.float32)
    xp = table.__array_namespace__()
    grid = xp.einsum("yr,xc,rcd->yxd", down, across, grid, optimize=True)
    return xp.concat([table[:prefix], grid.reshape(-1, width).astype(table.dtype)], axis=0)
