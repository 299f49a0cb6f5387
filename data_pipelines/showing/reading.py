"""Reads rows back from the arrays of a batch: nothing is rendered a second time.

Records say where they lie and what they are called; what stands there is taken from the arrays alone.
Axes: B rows, T tokens, N image slots, A axes of a position.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np

from data_pipelines.assemble import Placed
from data_pipelines.batch import Batch
from data_pipelines.boxes import written_boxes
from data_pipelines.showing.image_spans import image_places
from data_pipelines.showing.rows import (
    Answer,
    ImageSpan,
    ShownBox,
    ShownPadding,
    ShownRow,
    ShownSegment,
    ShownSlot,
    ShownToken,
    Span,
    TextSpan,
)
from data_pipelines.showing.token_texts import TokenTexts
from data_pipelines.showing.visible import quoted, visible

_ANSWERS: Mapping[int, Answer] = {1: "chosen", -1: "rejected"}
"""By `Batch.preference`."""


@dataclass(frozen=True)
class Reading:
    """What is known of the batches of a stage besides their arrays."""

    token_texts: TokenTexts
    features: int
    """Tokens that one image slot takes; 0: images stand beside the text."""
    sources: tuple[str, ...]
    """Names of the sources that the mixture draws from, in their order."""
    instruction_texts: TokenTexts | None = None
    """Of the connector's instructions; None: it reads none."""
    whole_slot: Callable[[int], int | None] = field(default=lambda slots: 0)
    """From the slots of one image to the one among them that shows the whole of it."""
    turning: Callable[[Batch], np.ndarray] | None = None
    """The positions by which the decoder turns its heads, i32[B, T, A]; None: they are the batch's own."""


@dataclass(frozen=True)
class _Row:
    """One row of a batch being read."""

    batch: Batch
    index: int
    positions: np.ndarray
    """i32[T, A]"""
    reading: Reading

    def token(self, place: int, first: int) -> ShownToken:
        """The token of a place in the segment that begins at `first`."""
        batch, index, texts = self.batch, self.index, self.reading.token_texts
        token, target = int(batch.tokens[index, place]), int(batch.targets[index, place])
        shown = texts(token)
        predicts = batch.loss_weights[index, place] > 0
        return ShownToken(
            place=place,
            index=token,
            text=visible(shown.text),
            kind=shown.kind,
            position=self.position(place),
            weight=float(batch.loss_weights[index, place - 1]) if place > first else 0.0,
            in_answer=bool(batch.answer_mask[index, place]),
            target=f"{quoted(texts(target).text)} ({target})" if predicts else None,
        )

    def position(self, place: int) -> tuple[int, ...]:
        return tuple(self.positions[place].tolist())


def shown_rows(batch: Batch, records: Sequence[Placed], reading: Reading, number: int) -> Iterator[ShownRow]:
    """Reads the rows of a batch one by one.

    Args:
        batch: NumPy arrays.
        records: what lies where in it, as `LoadedBatch` has them.
        reading: what is known of it.
        number: of the batch, from 1.
    """
    turning = batch.positions[..., None] if reading.turning is None else reading.turning(batch)
    for index in range(len(batch.tokens)):
        row = _Row(batch, index, turning[index], reading)
        placed = [record for record in records if record.row == index]
        yield ShownRow(number, index, tuple(_parts(row, placed)), tuple(_slots(row)))


def _parts(row: _Row, placed: Sequence[Placed]) -> Iterator[ShownSegment | ShownPadding]:
    """What stands in the row from its first place to its last."""
    ids = row.batch.segment_ids[row.index]
    lost = [record for record in placed if record.lost is not None]
    edges = [edge for record in lost for edge in (record.start, record.start + record.rendered.length)]
    cuts = sorted({0, len(ids), *(np.flatnonzero(np.diff(ids)) + 1).tolist(), *edges})
    for start, stop in pairwise(cuts):
        record = next((each for each in placed if 0 <= start - each.start < each.rendered.length), None)
        if ids[start]:
            yield _segment(row, start, stop, record)
        elif record is not None and record.lost is not None:
            why = f"{record.lost.cause}: {record.lost.detail}"
            yield ShownPadding(start, stop, visible(record.rendered.key), visible(why))
        else:
            yield ShownPadding(start, stop)


def _segment(row: _Row, start: int, stop: int, record: Placed | None) -> ShownSegment:
    batch, index = row.batch, row.index
    place = (index, slice(start, stop))
    weights, targets = batch.loss_weights[place], batch.targets[place]
    follows = np.append(targets[:-1] == batch.tokens[place][1:], False)
    slots = range(record.first_slot, record.first_slot + record.rendered.slots) if record else range(0)
    images = _whole_images(row, record, start, stop)
    boxes, spans = _with_boxes(tuple(_spans(row, start, stop)), images, row.reading.token_texts)
    preferred = 0 if batch.preference is None else int(batch.preference[index, start])
    return ShownSegment(
        number=int(batch.segment_ids[index, start]),
        key=visible(record.rendered.key) if record else "",
        source=row.reading.sources[record.source] if record else "",
        start=start,
        stop=stop,
        spans=spans,
        slots=slots,
        boxes=boxes,
        answer=_ANSWERS.get(preferred),
        reference=None if batch.reference is None else float(batch.reference[index, start]),
        astray=int(((weights > 0) & ~follows).sum()),
    )


def _spans(row: _Row, start: int, stop: int) -> Iterator[Span]:
    """The text and the images of the segment from `start` to `stop`."""
    image_index = row.batch.image_index[row.index]
    weights = row.batch.loss_weights[row.index]
    first = start
    while first < stop:
        is_image = image_index[first] >= 0
        learned = first > start and weights[first - 1] > 0
        last = first + 1
        while last < stop and (image_index[last] >= 0) == is_image and (is_image or (weights[last - 1] > 0) == learned):
            last += 1
        if is_image:
            slots = row.batch.image_mask.shape[1]
            for part in image_places(image_index[first:last], row.reading.features, slots):
                ends = row.position(first + part.start), row.position(first + part.stop - 1)
                yield ImageSpan(part.slots, part.stop - part.start, part.newlines, first + part.start, ends)
        else:
            yield TextSpan(_spelled([row.token(place, start) for place in range(first, last)], row.reading.token_texts))
        first = last


def _spelled(tokens: Sequence[ShownToken], texts: TokenTexts) -> tuple[ShownToken, ...]:
    """The tokens, of which neighbours of a byte each say what they spell together."""
    told: list[ShownToken] = []
    for kind, group in groupby(tokens, key=lambda token: token.kind):
        neighbours = list(group)
        if kind == "bytes":
            text = quoted(texts.joined([token.index for token in neighbours]))
            neighbours = [replace(token, spells=text) for token in neighbours]
        told += neighbours
    return tuple(told)


def _whole_images(row: _Row, record: Placed | None, start: int, stop: int) -> list[tuple[int, int | None]]:
    """For each image of a segment, the place where it begins and the slot that shows the whole of it."""
    if record is None:
        return []
    index, features = row.batch.image_index[row.index, start:stop], row.reading.features
    found, slot = [], record.first_slot
    for count in [layout.slots for layout in record.rendered.layouts] or [1] * len(record.rendered.images):
        places = np.flatnonzero((index >= slot * features) & (index < (slot + count) * features))
        whole = row.reading.whole_slot(count)
        found.append((start + int(places[0]) if len(places) else start, None if whole is None else slot + whole))
        slot += count
    return found


def _with_boxes(
    spans: Sequence[Span], images: Sequence[tuple[int, int | None]], texts: TokenTexts
) -> tuple[tuple[ShownBox, ...], tuple[Span, ...]]:
    """The boxes written in a segment, each with the slot of the last image before it, and the spans that name them."""
    tokens = [token for span in spans if isinstance(span, TextSpan) for token in span.tokens]
    parts = [texts(token.index).adds for token in tokens]
    ends = np.cumsum([len(part) for part in parts])
    boxes: list[ShownBox] = []
    numbers: dict[int, int] = {}
    for number, written in enumerate(written_boxes("".join(parts)), start=1):
        first, last = np.searchsorted(ends, [written.start, written.stop - 1], "right").tolist()
        numbers |= {token.place: number for token in tokens[first : last + 1]}
        before = [slot for begins, slot in images if begins <= tokens[first].place] or [slot for _, slot in images[:1]]
        shares = all(0 <= edge <= 1 for edge in written.box)
        boxes.append(ShownBox(number, written.box, before[-1] if before and shares else None))
    return tuple(boxes), tuple(_numbered(span, numbers) for span in spans)


def _numbered(span: Span, numbers: Mapping[int, int]) -> Span:
    if isinstance(span, ImageSpan):
        return span
    return TextSpan(tuple(replace(token, box=numbers.get(token.place)) for token in span.tokens))


def _slots(row: _Row) -> Iterator[ShownSlot]:
    batch, index = row.batch, row.index
    for slot, used in enumerate(batch.image_mask[index].tolist()):
        instruction = None
        if used and batch.instructions is not None and row.reading.instruction_texts is not None:
            ids = batch.instructions[index, slot]
            instruction = visible(row.reading.instruction_texts.joined(ids[ids >= 0].tolist()))
        yield ShownSlot(slot, batch.images[index, slot] if used else None, instruction)
