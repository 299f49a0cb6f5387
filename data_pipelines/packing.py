"""Packs segments into rows of fixed length by their token counts and image slots, before any image is decoded."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from data_pipelines.quota import Skip
from data_pipelines.rendered import RenderedRecord

Overlong = Literal["drop", "cut", "cut_images"]

WAITING_LIMIT = 2000
"""Segments that wait at most, however short they are: a lane's state names each of them."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One rendered record on its way into a row, and the place to read it again."""

    rendered: RenderedRecord
    source: int
    shard: int
    place: int
    epoch: int = 0

    @property
    def tokens(self) -> int:
        return self.rendered.length

    @property
    def images(self) -> int:
        """Image slots that it takes."""
        return self.rendered.slots


class Packer:
    """Fills rows from a bounded number of waiting segments.

    Segments wait until they would fill `open_rows` rows, by their tokens or by their images, or until `WAITING_LIMIT`
    wait. Then a row is made: it takes the one that waits longest, and of the others those that fill the row best; see
    `fullest`. So a segment waits at most for as many rows as there were segments before it.
    """

    def __init__(self, row_length: int, images_per_row: int, open_rows: int) -> None:
        self._row_length = row_length
        self._images_per_row = images_per_row
        self._enough_tokens = open_rows * row_length
        self._enough_images = open_rows * images_per_row
        self._tokens = 0
        self._images = 0
        self._waiting: list[Segment] = []
        self._sizes: list[tuple[int, int]] = []

    @property
    def waiting(self) -> tuple[Segment, ...]:
        """The segments that no row has taken yet, oldest first."""
        return tuple(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether enough segments wait to make a row."""
        return (
            self._tokens >= self._enough_tokens
            or 0 < self._enough_images <= self._images
            or len(self._waiting) >= WAITING_LIMIT
        )

    def add(self, segment: Segment) -> None:
        """Lets a segment wait that `fit` let pass."""
        size = segment.tokens, segment.images
        self._waiting.append(segment)
        self._sizes.append(size)
        self._tokens += size[0]
        self._images += size[1]

    def take(self) -> tuple[Segment, ...]:
        """Returns the segments of the next row, the longest waiting first."""
        chosen = fullest(self._sizes, self._row_length, self._images_per_row)
        row = tuple(self._waiting[index] for index in chosen)
        for index in reversed(chosen):
            del self._waiting[index]
            tokens, images = self._sizes.pop(index)
            self._tokens -= tokens
            self._images -= images
        return row


def fullest(sizes: Sequence[tuple[int, int]], row_length: int, images_per_row: int) -> list[int]:
    """Returns which segments fill a row best, the first always among them.

    Subset sums by dynamic programming over bit sets (Bellman 1957, in one integer per image count): bit n of
    `reached[k]` says that some of the segments looked at have n tokens and at most k images. Segments are looked at in
    order and no further than an exact fill needs, so that old ones go first and the cost stays low.

    Args:
        sizes: (tokens, image slots) of each segment; the first must fit an empty row.
        row_length: tokens of a row.
        images_per_row: image slots of a row.
    """
    tokens, images = sizes[0]
    mask = (1 << row_length + 1) - 1
    reached = [1 << tokens if count >= images else 0 for count in range(images_per_row + 1)]
    before: list[tuple[int, ...]] = []
    for tokens, images in sizes[1:]:
        before.append(tuple(reached))
        for count in range(images_per_row, images - 1, -1):
            reached[count] |= reached[count - images] << tokens & mask
        if reached[-1] >> row_length:
            break
    left, count = reached[-1].bit_length() - 1, images_per_row
    chosen = [0]
    for index in range(len(before), 0, -1):
        if not before[index - 1][count] >> left & 1:
            left -= sizes[index][0]
            count -= sizes[index][1]
            chosen.append(index)
    return sorted(chosen)


def fit(
    rendered: RenderedRecord, row_length: int, images_per_row: int, image_tokens: int, overlong: Overlong
) -> RenderedRecord | Skip:
    """Returns a record that fits an empty row, or why it cannot.

    With `overlong` "cut" the text behind the last image is cut at the row's end, if a supervised token is left before
    it. With "cut_images" a record ends before its first image that the row has no place for, or at the row's end, and
    then with its last supervised token. An image's tokens are never cut, nor are the answers of a preference pair.

    Args:
        image_tokens: of an image that has no layout of its own.
    """
    if overlong == "cut_images" and rendered.rejected is None:
        rendered = _cut_with_images(rendered, row_length, images_per_row, image_tokens)
    if rendered.slots > images_per_row:
        tiles = f" of {rendered.slots} tiles" if rendered.layouts else ""
        detail = f"{len(rendered.images)} images{tiles} where a row has {images_per_row}"
        return Skip("too_many_images", rendered.key, detail)
    length = rendered.length
    if length > row_length:
        uncut = overlong == "drop" or rendered.rejected is not None
        last_image = len(rendered.layouts[-1].index) if rendered.layouts else image_tokens
        images_end = rendered.image_starts[-1] + last_image if rendered.image_starts else 0
        if uncut or images_end > row_length or not rendered.supervised[1:row_length].any():
            return Skip("too_long", rendered.key, f"{length} tokens where a row has {row_length}")
        rendered = replace(
            rendered,
            tokens=rendered.tokens[:row_length],
            supervised=rendered.supervised[:row_length],
            in_answer=rendered.in_answer[:row_length],
        )
    if not all(segment.supervised[1:].any() for segment in rendered.segments):
        return Skip("nothing_supervised", rendered.key, "no token that the loss would cover")
    return rendered


def _cut_with_images(
    rendered: RenderedRecord, row_length: int, images_per_row: int, image_tokens: int
) -> RenderedRecord:
    """Returns a record up to the last supervised token that stands in a row, before the first image that does not.

    It stays whole where all of it fits, or where there is no such token.
    """
    end, slots = min(row_length, len(rendered.tokens)), 0
    for number, start in enumerate(rendered.image_starts):
        layout = rendered.layouts[number] if rendered.layouts else None
        slots += 1 if layout is None else layout.slots
        length = image_tokens if layout is None else len(layout.index)
        if start + length > row_length or slots > images_per_row:
            end = min(end, start)
            break
    learned = np.flatnonzero(rendered.supervised[1:end])
    if end == len(rendered.tokens) or not len(learned):
        return rendered
    length = int(learned[-1]) + 2
    images = bisect_left(rendered.image_starts, length)
    return replace(
        rendered,
        tokens=rendered.tokens[:length],
        supervised=rendered.supervised[:length],
        in_answer=rendered.in_answer[:length],
        image_starts=rendered.image_starts[:images],
        images=rendered.images[:images],
        layouts=rendered.layouts[:images],
        instructions=rendered.instructions[:images],
    )
