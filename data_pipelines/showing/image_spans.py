"""Which neighbouring places of a row show the same image."""

from typing import NamedTuple

import numpy as np


class ImagePlaces(NamedTuple):
    start: int
    stop: int
    slots: tuple[int, ...]
    """Ascending."""
    newlines: int


def image_places(image_index: np.ndarray, features: int, slots: int) -> list[ImagePlaces]:
    """Splits places of images that stand next to each other, so that slots whose features alternate stay together.

    The tiles of a merged grid alternate row by row; images and tiles that stay apart follow one another.

    Args:
        image_index: i32[n] as `Batch.image_index` has it, without -1.
        features: of a slot.
        slots: of a row.
    """
    newline = image_index == slots * features
    of_slot = np.where(newline, -1, image_index // max(features, 1)).tolist()
    last = {slot: place for place, slot in enumerate(of_slot)}
    starts: list[int] = []
    reach = -1
    for place, slot in enumerate(of_slot):
        if (slot >= 0 and place > reach) or not starts:
            starts.append(place)
        if slot >= 0:
            reach = max(reach, last[slot])
    return [
        ImagePlaces(start, stop, tuple(sorted(set(of_slot[start:stop]) - {-1})), int(newline[start:stop].sum()))
        for start, stop in zip(starts, [*starts[1:], len(of_slot)], strict=True)
    ]
