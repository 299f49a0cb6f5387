"""Packs segments into rows of fixed length by their token counts and images, before any image is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from data_pipelines.quota import Skip
from data_pipelines.rendered import RenderedRecord

Overlong = Literal["drop", "cut"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One rendered record on its way into a row, and the place to read it again."""

    rendered: RenderedRecord
    source: int
    shard: int
    place: int

    @property
    def tokens(self) -> int:
        return len(self.rendered.tokens)

    @property
    def images(self) -> int:
        return len(self.rendered.images)


@dataclass(slots=True)
class Row:
    """Segments that share a row, in order."""

    segments: list[Segment] = field(default_factory=list)
    tokens: int = 0
    images: int = 0

    def add(self, segment: Segment) -> None:
        self.segments.append(segment)
        self.tokens += segment.tokens
        self.images += segment.images


class Packer:
    """First fit over a bounded number of open rows.

    A segment goes into the oldest open row that has room for its tokens and images. If none has, a new row is opened;
    if `open_rows` are open already, the row with the fewest free token places (the oldest of equals) is closed and
    given out first. A row that is full to the last token is given out at once.
    """

    def __init__(self, row_length: int, images_per_row: int, open_rows: int) -> None:
        self._row_length = row_length
        self._images_per_row = images_per_row
        self._open_rows = open_rows
        self._rows: list[Row] = []

    @property
    def rows(self) -> tuple[Row, ...]:
        """The open rows, oldest first."""
        return tuple(self._rows)

    def restore(self, rows: Iterator[Row]) -> None:
        """Sets the open rows, oldest first."""
        self._rows = list(rows)

    def add(self, segment: Segment) -> Row | None:
        """Places a segment that `fit` let pass; returns the row that this closes, if any."""
        tokens = self._row_length - segment.tokens
        images = self._images_per_row - segment.images
        for index, row in enumerate(self._rows):
            if row.tokens <= tokens and row.images <= images:
                row.add(segment)
                return self._rows.pop(index) if row.tokens == self._row_length else None
        closed = None
        if len(self._rows) == self._open_rows:
            closed = self._rows.pop(max(range(self._open_rows), key=lambda index: (self._rows[index].tokens, -index)))
        self._rows.append(Row())
        self._rows[-1].add(segment)
        return closed


def fit(
    rendered: RenderedRecord, row_length: int, images_per_row: int, image_tokens: int, overlong: Overlong
) -> RenderedRecord | Skip:
    """Returns a record that fits an empty row, or why it cannot.

    With `overlong` "cut" the text behind the last image is cut at the row's end, if a supervised token is left before
    it; an image's tokens are never cut.
    """
    if len(rendered.images) > images_per_row:
        detail = f"{len(rendered.images)} images where a row has {images_per_row}"
        return Skip("too_many_images", rendered.key, detail)
    length = len(rendered.tokens)
    if length > row_length:
        images_end = rendered.image_starts[-1] + image_tokens if rendered.image_starts else 0
        if overlong == "drop" or images_end > row_length or not rendered.supervised[1:row_length].any():
            return Skip("too_long", rendered.key, f"{length} tokens where a row has {row_length}")
        rendered = replace(rendered, tokens=rendered.tokens[:row_length], supervised=rendered.supervised[:row_length])
    if not rendered.supervised[1:].any():
        return Skip("nothing_supervised", rendered.key, "no token that the loss would cover")
    return rendered
