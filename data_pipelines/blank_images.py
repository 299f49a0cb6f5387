"""Black images in the place of decoded ones, to measure what all but decoding costs."""

from dataclasses import replace
from typing import Any

import numpy as np

from data_pipelines.preparation import Preparation
from data_pipelines.record import ImagePart
from data_pipelines.rendered import ImageLayout
from data_pipelines.transforms.tiles import TiledImages


def without_decoding(preparation: Preparation) -> Preparation:
    """The same, but every image is black and costs no decoding: what is left is reading, Python's work and copying."""
    black = np.zeros((*preparation.image_size, 3), np.uint8)
    tiled = None if preparation.tiled is None else _BlackTiles(preparation.tiled, black)
    described = preparation.description
    blank = None if described is None else described.model_copy(update={"blank": True})
    return replace(preparation, decode=lambda data: black, tiled=tiled, augment=None, description=blank)


class _BlackTiles(TiledImages):
    """Tiled images of which none is decoded."""

    def __init__(self, tiled: TiledImages, black: np.ndarray) -> None:
        self.config = tiled.config
        self._tiled = tiled
        self._black = black

    def fingerprint(self) -> dict[str, Any]:
        return self._tiled.fingerprint()

    def layout(self, image: ImagePart) -> ImageLayout:
        return self._tiled.layout(image)

    def decode(self, data: bytes, layout: ImageLayout) -> np.ndarray:
        return np.broadcast_to(self._black, (layout.slots, *self._black.shape))
