"""Positions in time, row and column (https://arxiv.org/abs/2409.12191): an image's tokens stand where its patches lie.

A text token has one number for all three. An image's tokens have the number of its first one in time, and their row and
column counted from there; what follows the image goes on after the largest of them.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mllm_jax.models.layers.rotary_scaling import plain_frequencies


def grid_positions(
    positions: Int[Array, "B T"], image_index: Int[Array, "B T"], grid: tuple[int, int]
) -> Int[Array, "B T 3"]:
    """From places in a segment to positions in time, row and column.

    Args:
        positions: places, counted from 0 in every segment.
        image_index: slot * (rows * columns) + feature where a token is of an image, or -1; images are whole.
        grid: rows and columns in which the tokens of one image lie.
    """
    rows, columns = grid
    size = rows * columns
    in_image = image_index >= 0
    before = jnp.cumsum(in_image, axis=1) - in_image
    starts = jnp.arange(positions.shape[1]) - positions
    images = (before - jnp.take_along_axis(before, starts, axis=1)) // size
    feature = jnp.where(in_image, image_index % size, 0)
    first = positions - feature - images * (size - max(grid))
    return jnp.stack([first, first + feature // columns, first + feature % columns], axis=-1)


def along_sections(
    positions: Int[Array, "B T *axes"], sections: tuple[int, ...] | None
) -> Int[Array, "B T"] | Int[Array, "B T half"]:
    """The position that turns each pair of dimensions, the sections one after another; without sections, `positions`.

    Positions without axes are the same in every section.
    """
    if sections is None or positions.ndim == 2:
        return positions
    return jnp.repeat(positions, np.array(sections), axis=-1, total_repeat_length=sum(sections))


def grid_angles(
    grid: tuple[int, int], width: int, theta: float
) -> tuple[Float[Array, "1 P half"], Float[Array, "1 P half"]]:
    """Cosine and sine of patches in rows and columns: half of a head's pairs turn by the row, half by the column."""
    rows, columns = jnp.indices(grid).reshape(2, -1)
    frequencies = plain_frequencies(width // 2, theta)
    angles = jnp.concatenate([rows[:, None] * frequencies, columns[:, None] * frequencies], axis=-1)[None]
    return jnp.cos(angles), jnp.sin(angles)
