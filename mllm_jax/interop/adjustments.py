"""Changes of size that a caller may ask for while weights are loaded; each of them is reported."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mllm_jax.interop.rules import Shape
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.positions import resize_positions
from mllm_jax.models.vit import ViTConfig


class Adjustment(Protocol):
    """A change from the shape a file holds to the shape of our parameter."""

    def source_shape(self, shape: Shape) -> Shape:
        """The shape before, given the shape after."""

    def apply(self, array: np.ndarray) -> np.ndarray: ...

    def describe(self) -> str: ...


@dataclass(frozen=True)
class ResizePositions:
    """A position table for another number of patches (bicubic, in float32)."""

    source: tuple[int, int]
    """Rows and columns of patches in the file."""
    target: tuple[int, int]
    """Rows and columns of patches wanted."""

    def source_shape(self, shape: Shape) -> Shape:
        prefix = shape[0] - self.target[0] * self.target[1]
        return (prefix + self.source[0] * self.source[1], *shape[1:])

    def apply(self, array: np.ndarray) -> np.ndarray:
        return resize_positions(array, self.source, self.target)

    def describe(self) -> str:
        return f"position table resized from {self.source[0]}x{self.source[1]} to {self.target[0]}x{self.target[1]}"


@dataclass(frozen=True)
class ExtendVocabulary:
    """More rows for new tokens, each the mean of the rows there are."""

    rows: int
    """Size of the vocabulary in the file."""
    total: int
    """Size of the vocabulary wanted."""
    axis: int
    """0 for the embedding [V, D], 1 for the output projection [D, V]."""

    def source_shape(self, shape: Shape) -> Shape:
        return tuple(self.rows if axis == self.axis else size for axis, size in enumerate(shape))

    def apply(self, array: np.ndarray) -> np.ndarray:
        mean = array.astype(np.float32).mean(axis=self.axis, keepdims=True).astype(array.dtype)
        return np.concatenate([array, mean.repeat(self.total - self.rows, axis=self.axis)], axis=self.axis)

    def describe(self) -> str:
        return f"vocabulary extended from {self.rows} to {self.total} by the mean of the existing rows"


def encoder_adjustments(file: ViTConfig, wanted: ViTConfig, prefix: str = "") -> dict[str, Adjustment]:
    """What turns the folder's encoder weights into the wanted encoder's; `prefix` is the path to the encoder."""
    if file.table_grid == wanted.table_grid or wanted.positions != "learned":
        return {}
    return {f"{prefix}position_embedding": ResizePositions(file.table_grid, wanted.table_grid)}


def decoder_adjustments(file: DecoderConfig, wanted: DecoderConfig, prefix: str = "") -> dict[str, Adjustment]:
    """What turns the folder's decoder weights into the wanted decoder's; a vocabulary can only grow."""
    if file.vocab_size >= wanted.vocab_size:
        return {}
    sizes = file.vocab_size, wanted.vocab_size
    adjustments: dict[str, Adjustment] = {f"{prefix}token_embedding/embedding": ExtendVocabulary(*sizes, axis=0)}
    if not wanted.tied_embeddings:
        adjustments[f"{prefix}output/kernel"] = ExtendVocabulary(*sizes, axis=1)
    return adjustments
