"""How a stage makes tokens and pixels of a record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.lanes import Render
from data_pipelines.transforms.tiles import TiledImages

if TYPE_CHECKING:
    from data_pipelines.preparation_description import PreparationDescription


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a stage makes tokens and pixels of a record."""

    render: Render
    decode: Callable[[bytes], np.ndarray]
    """Encoded image -> u8[H, W, 3]; raises `ImageError` for bytes that are no image."""
    image_tokens: int
    """Tokens that the image of one slot takes in the decoder."""
    image_size: tuple[int, int]
    """(H, W) in pixels of a slot: of what `decode` returns, or of a tile."""
    tiled: TiledImages | None = None
    """Takes the place of `decode` where images are tiled, and `render` gives records with layouts."""
    instruction_tokens: int = 0
    """Longest instruction of an image, which `render` gives records; 0: it gives none."""
    preferences: bool = False
    """Whether `render` gives preference pairs."""
    references: bool = False
    """Whether it gives them with the scores of a reference model."""
    augment: Callable[[bytes, int], np.ndarray] | None = None
    """Takes the place of `decode` where a stage changes images at random, and has the image's seed besides."""
    description: "PreparationDescription | None" = None
    """What other processes make the same of; None: it is made of functions that no other process has."""

    @property
    def tiling(self) -> dict[str, Any] | None:
        """What tiled images are laid out by, as JSON; None: they are not tiled."""
        return None if self.tiled is None else self.tiled.fingerprint()
