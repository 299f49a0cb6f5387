"""What a chat template makes of a record: token ids, what is supervised, and where each image's tokens stand."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.record import ImagePart


class RenderError(ValueError):
    """A record that a chat template cannot express; a deterministic function of the record, so it may be skipped.

    `cause` is one word for counting ("turn_order", "token_boundary"); `detail` says what was found.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


NEWLINE = -1
"""Stands in an `ImageLayout` for the learned embedding that ends a row of tiles."""

MARK = -2
"""Stands in an `ImageLayout` for a token of text between tiles."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The image slots that one image takes, and the feature that each of its n tokens takes."""

    slots: int
    index: np.ndarray
    """i32[n]; slot * features of a slot + feature, from the image's first slot on, or `NEWLINE` or `MARK`."""
    size: tuple[int, int] | None = None
    """Height and width in pixels of the image that it is the layout of."""
    marks: tuple[int, ...] = ()
    """The tokens at the places of `MARK`."""
    in_order: bool = False
    """Whether nothing but features stands in `index`, so that nothing else need be looked for."""

    def tokens(self, image_token: int) -> np.ndarray:
        """The tokens of the image: i32[n]."""
        tokens = np.full(len(self.index), image_token, np.int32)
        tokens[self.index == MARK] = self.marks
        return tokens

    def placed(self, first_slot: int, slots: int, features: int) -> np.ndarray:
        """The index in a row: i32[n], as `Batch.image_index`.

        Args:
            first_slot: of the image.
            slots: of the row.
            features: of a slot.
        """
        placed = self.index + first_slot * features
        if self.in_order:
            return placed
        placed = np.where(self.index == NEWLINE, slots * features, placed)
        return np.where(self.index == MARK, -1, placed)


LayoutOf = Callable[[ImagePart], ImageLayout]
"""Lays an image out; raises `ImageError` where it cannot be read."""


@dataclass(frozen=True, slots=True)
class RenderedRecord:
    """A record as one segment of a row, or as two that stand next to each other; n is the number of tokens of one."""

    key: str
    tokens: np.ndarray
    """i32[n]; at image positions the tokenizer's image token."""
    supervised: np.ndarray
    """bool[n]; whether the loss covers *predicting* this token."""
    in_answer: np.ndarray
    """bool[n]; whether the token belongs to an assistant's content or its end of turn, learned or not."""
    image_starts: tuple[int, ...]
    """For each image, the index in `tokens` where its run of image placeholder tokens begins; ascending."""
    images: tuple[ImagePart, ...]
    """The images in the order of their runs."""
    layouts: tuple[ImageLayout, ...] = ()
    """How each image is laid out; empty where every image takes one slot, and its features in their order."""
    instructions: tuple[np.ndarray, ...] = ()
    """For each image, i32[s]: what it is asked, in the connector's tokens; empty for connectors that read no text."""

    rejected: "RenderedRecord | None" = None
    """Of a preference pair, the same prompt with the worse answer; it shares the image slots. None: it is no pair."""
    reference: tuple[float, float] | None = None
    """Of a preference pair, the summed log-probabilities of both answers by a reference model; None: not known."""

    @property
    def segments(self) -> "tuple[RenderedRecord, ...]":
        """What takes a segment of a row each: the record alone, or the better and the worse answer of a pair."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def length(self) -> int:
        """Tokens of a row that it takes."""
        return len(self.tokens) + (0 if self.rejected is None else len(self.rejected.tokens))

    @property
    def slots(self) -> int:
        """Image slots that the images take."""
        return sum(layout.slots for layout in self.layouts) if self.layouts else len(self.images)
