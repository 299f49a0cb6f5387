"""Rows of a batch as a person reads them: what a page or a terminal shows, free of either.

All text is as `visible` leaves it: safe to print, still to be escaped where it becomes markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipelines.boxes import Box
from data_pipelines.showing.token_texts import Kind


@dataclass(frozen=True, slots=True)
class ShownToken:
    place: int
    """In the row, from 0."""
    index: int
    """Its id."""
    text: str
    kind: Kind
    position: tuple[int, ...]
    """In its segment; of decoders that turn heads by an image's grid, in time, row and column."""
    weight: float
    """Loss weight of predicting this token from those before it; 0: it is not supervised."""
    in_answer: bool
    target: str | None = None
    """What is predicted at its place, with its id; None: nothing is."""
    box: int | None = None
    """Number of the box that it is a part of."""
    spells: str | None = None
    """Of a token of a byte, the text that it and the bytes beside it are; None: it is no such token."""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Neighbouring tokens that are all supervised, or all not."""

    tokens: tuple[ShownToken, ...]

    @property
    def supervised(self) -> bool:
        return self.tokens[0].weight > 0


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Neighbouring places that take the features of one image slot, or of several that are merged to one picture."""

    slots: tuple[int, ...]
    places: int
    newlines: int
    """Places among them that take the learned end of a row of tiles."""
    start: int
    """The first place."""
    positions: tuple[tuple[int, ...], tuple[int, ...]]
    """Of the first and the last place."""

    @property
    def label(self) -> str:
        newlines = f", {counted(self.newlines, 'newline')} among them" if self.newlines else ""
        return f"[{slot_names(self.slots)}: {counted(self.places, 'place')}{newlines}]"


Span = TextSpan | ImageSpan
Answer = Literal["chosen", "rejected"]


@dataclass(frozen=True, slots=True)
class ShownBox:
    number: int
    """From 1 in every segment."""
    box: Box
    slot: int | None
    """The slot that shows the image it is written about; None: it is of no image, or not in shares of one."""


@dataclass(frozen=True, slots=True)
class ShownSegment:
    number: int
    """As `Batch.segment_ids` counts, from 1."""
    key: str
    """Of the record."""
    source: str
    """Name of the source that the record is from."""
    start: int
    stop: int
    spans: tuple[Span, ...]
    slots: range
    """Image slots that are its own; of a preference pair, those of both answers."""
    boxes: tuple[ShownBox, ...] = ()
    answer: Answer | None = None
    """Which answer of a preference pair it holds; None: it is no such pair."""
    reference: float | None = None
    """Summed log-probability of what is supervised of it by a reference model; None: no cached one was asked."""
    astray: int = 0
    """Places with a loss weight whose target is not the token that follows in the segment; 0 unless something broke."""

    @property
    def tokens(self) -> tuple[ShownToken, ...]:
        """Those of text, without the places of images."""
        return tuple(token for span in self.spans if isinstance(span, TextSpan) for token in span.tokens)

    @property
    def places(self) -> int:
        return self.stop - self.start

    @property
    def supervised(self) -> int:
        return sum(token.weight > 0 for token in self.tokens)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it besides its key and its answer."""
        told = [f"source {self.source}", f"places {self.start} to {self.stop - 1}", f"{self.supervised} supervised"]
        if self.slots:
            told.append(slot_names(self.slots))
        if self.reference is not None:
            told.append(f"reference log-probability {self.reference:.3f}")
        for box in self.boxes:
            told.append(f"box {box.number} " + ("not drawn" if box.slot is None else f"in slot {box.slot}"))
        return tuple(told)

    @property
    def problem(self) -> str | None:
        """What is wrong with its arrays; None: nothing is."""
        return f"{counted(self.astray, 'target')} not the token that follows" if self.astray else None


@dataclass(frozen=True, slots=True)
class ShownPadding:
    start: int
    stop: int
    key: str | None = None
    """Of the record that was there before its image turned out bad; None: there was none."""
    why: str | None = None

    @property
    def places(self) -> int:
        return self.stop - self.start

    @property
    def label(self) -> str:
        lost = f"; {self.key} was here ({self.why})" if self.key else ""
        return f"{counted(self.places, 'place')} of padding{lost}"


@dataclass(frozen=True, slots=True)
class ShownSlot:
    number: int
    pixels: np.ndarray | None
    """u8[H, W, 3] as the model receives it; None: the slot is empty."""
    instruction: str | None = None
    """What the connector reads beside the image; None: it reads nothing."""


@dataclass(frozen=True, slots=True)
class ShownRow:
    batch: int
    """From 1, the step that trains on it."""
    number: int
    """In the batch, from 0."""
    parts: tuple[ShownSegment | ShownPadding, ...]
    """From its first place to its last."""
    slots: tuple[ShownSlot, ...]

    @property
    def segments(self) -> tuple[ShownSegment, ...]:
        return tuple(part for part in self.parts if isinstance(part, ShownSegment))

    @property
    def title(self) -> str:
        return f"batch {self.batch}, row {self.number}"

    @property
    def summary(self) -> str:
        counts = self.counts
        told = [f"{counts.filled:,} of {counted(counts.places, 'place')} filled", f"{counts.supervised:,} supervised"]
        if counts.slots:
            told.append(f"{counts.images} of {counted(counts.slots, 'image slot')}")
        return ", ".join((*told, counted(len(self.segments), "segment")))

    @property
    def counts(self) -> "Counts":
        return Counts(
            places=self.parts[-1].stop,
            filled=sum(segment.places for segment in self.segments),
            supervised=sum(segment.supervised for segment in self.segments),
            slots=len(self.slots),
            images=sum(slot.pixels is not None for slot in self.slots),
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What places and image slots of rows are used for."""

    places: int
    filled: int
    """Places that belong to a segment; the others are padding."""
    supervised: int
    """Tokens that the loss covers."""
    slots: int
    images: int
    """Slots that hold an image or a tile of one."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.places + other.places,
            self.filled + other.filled,
            self.supervised + other.supervised,
            self.slots + other.slots,
            self.images + other.images,
        )

    def shares(self) -> dict[str, float]:
        """The shares by their names: of places, of filled places (supervised), of slots where there are any."""
        found = {
            "filled": self.filled / self.places,
            "padding": 1 - self.filled / self.places,
            "supervised": self.supervised / max(1, self.filled),
        }
        return found | ({"image slots filled": self.images / self.slots} if self.slots else {})


@dataclass(frozen=True, slots=True)
class Shown:
    """Rows of one stage, and what they were made by."""

    run: str
    stage: str
    facts: Mapping[str, str]
    """Name -> what the run file says of it."""
    rows: tuple[ShownRow, ...]
    skipped: Mapping[str, int]
    """Records left out on the way to these rows, by cause."""

    @property
    def counts(self) -> Counts:
        return sum((row.counts for row in self.rows), Counts(0, 0, 0, 0, 0))


def slot_names(slots: Sequence[int]) -> str:
    """`slot 3`, `slots 0 to 4`, of ascending slots."""
    return f"slot {slots[0]}" if len(slots) == 1 else f"slots {slots[0]} to {slots[-1]}"


def counted(number: int, thing: str) -> str:
    """`1 place`, `576 places`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
