"""Lays packed rows out as the arrays of a batch.

Axes: B rows, T tokens, N image slots, S tokens of an instruction, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipelines.batch import Batch
from data_pipelines.packing import Segment
from data_pipelines.quota import Skip
from data_pipelines.rendered import ImageLayout, RenderedRecord


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a segment lies in the batch."""

    segment: Segment
    row: int
    start: int
    first_slot: int
    lost: Skip | None = None
    """Why padding stands in its place; None: it is there."""

    @property
    def rendered(self) -> RenderedRecord:
        return self.segment.rendered

    @property
    def source(self) -> int:
        """Its number among the sources that the mixture draws from."""
        return self.segment.source


def empty_batch(
    rows: int,
    row_length: int,
    images_per_row: int,
    image_size: tuple[int, int],
    instruction_tokens: int = 0,
    preferences: bool = False,
    references: bool = False,
) -> Batch:
    """Returns a batch of padding: zeros, and -1 for the image index and the instructions.

    Args:
        instruction_tokens: S; 0: a batch without instructions.
        preferences: whether its records are preference pairs.
        references: whether a reference model has scored these.
    """
    tokens = (rows, row_length)
    return Batch(
        tokens=np.zeros(tokens, np.int32),
        targets=np.zeros(tokens, np.int32),
        loss_weights=np.zeros(tokens, np.float32),
        segment_ids=np.zeros(tokens, np.int32),
        positions=np.zeros(tokens, np.int32),
        images=np.zeros((rows, images_per_row, *image_size, 3), np.uint8),
        image_mask=np.zeros((rows, images_per_row), np.bool_),
        image_index=np.full(tokens, -1, np.int32),
        answer_mask=np.zeros(tokens, np.bool_),
        instructions=np.full((rows, images_per_row, instruction_tokens), -1, np.int32) if instruction_tokens else None,
        preference=np.zeros(tokens, np.int32) if preferences else None,
        reference=np.zeros(tokens, np.float32) if references else None,
    )


def place_row(batch: Batch, index: int, row: tuple[Segment, ...], image_tokens: int) -> list[Placed]:
    """Writes a packed row into `batch`, all but its pixels; image slots are filled in order.

    Args:
        image_tokens: of one slot.
    """
    whole_slot = _whole_slot(image_tokens)
    placed: list[Placed] = []
    start = slot = 0
    for segment in row:
        rendered = segment.rendered
        placed.append(Placed(segment, index, start, slot))
        layouts = rendered.layouts or (whole_slot,) * len(rendered.images)
        place_instructions(batch.instructions, index, slot, layouts, rendered.instructions)
        _place_preference(batch, index, start, rendered)
        for answered in rendered.segments:
            _place_features(batch, index, (start, slot), answered.image_starts, layouts, image_tokens)
            start += len(answered.tokens)
        slot += rendered.slots
    batch.image_mask[index, :slot] = True
    if row:
        _place_tokens(batch, index, [answered for segment in row for answered in segment.rendered.segments])
    return placed


@lru_cache(8)
def _whole_slot(image_tokens: int) -> ImageLayout:
    return ImageLayout(1, np.arange(image_tokens, dtype=np.int32), in_order=True)


def _place_tokens(batch: Batch, index: int, row: Sequence[RenderedRecord]) -> None:
    """Writes what there is of every token, all segments of a row at once."""
    lengths = np.array([len(rendered.tokens) for rendered in row])
    ends = lengths.cumsum()
    stop = int(ends[-1])
    tokens, targets, weights = batch.tokens[index, :stop], batch.targets[index, :stop], batch.loss_weights[index, :stop]
    np.concatenate([rendered.tokens for rendered in row], out=tokens)
    targets[:-1] = tokens[1:]
    weights[:-1] = np.concatenate([rendered.supervised for rendered in row])[1:]
    # Nothing follows the last token of a segment.
    last = ends - 1
    targets[last] = 0
    weights[last] = 0
    batch.segment_ids[index, :stop] = np.arange(1, len(row) + 1).repeat(lengths)
    np.subtract(
        np.arange(stop), (ends - lengths).repeat(lengths), out=batch.positions[index, :stop], casting="same_kind"
    )
    np.concatenate([rendered.in_answer for rendered in row], out=batch.answer_mask[index, :stop])


def _place_features(
    batch: Batch,
    index: int,
    place: tuple[int, int],
    image_starts: Sequence[int],
    layouts: Sequence[ImageLayout],
    image_tokens: int,
) -> None:
    """Says which features the image tokens of a segment take; `place` is its first token and its first slot."""
    start, slot = place
    slots = batch.image_mask.shape[1]
    for image_start, layout in zip(image_starts, layouts, strict=True):
        first = start + image_start
        features = layout.placed(slot, slots, image_tokens)
        batch.image_index[index, first : first + len(features)] = features
        slot += layout.slots


def _place_preference(batch: Batch, index: int, start: int, rendered: RenderedRecord) -> None:
    """Says which answer of a pair is better, and what a reference model thinks of them."""
    if batch.preference is None:
        return
    for order, answered in enumerate(rendered.segments):
        stop = start + len(answered.tokens)
        batch.preference[index, start:stop] = 1 - 2 * order
        if batch.reference is not None and rendered.reference is not None:
            batch.reference[index, start] = rendered.reference[order]
        start = stop


def place_instructions(
    target: np.ndarray | None,
    row: int,
    slot: int,
    layouts: Sequence[ImageLayout],
    instructions: Sequence[np.ndarray],
) -> None:
    """Writes what each image is asked beside every slot that the image takes.

    Args:
        target: i32[B, N, S]; None: the model reads no instructions, and there are none.
        row: of the batch.
        slot: the first of the first image.
        layouts: of the images.
        instructions: of the images.
    """
    if target is None:
        return
    for layout, instruction in zip(layouts, instructions, strict=True):
        target[row, slot : slot + layout.slots, : len(instruction)] = instruction
        slot += layout.slots


def erase(batch: Batch, placed: Placed) -> None:
    """Turns what was placed, of a preference pair both segments, into padding; what is around it stays where it is."""
    tokens = (placed.row, slice(placed.start, placed.start + placed.rendered.length))
    slots = (placed.row, slice(placed.first_slot, placed.first_slot + placed.rendered.slots))
    for array in (batch.tokens, batch.targets, batch.loss_weights, batch.segment_ids, batch.positions):
        array[tokens] = 0
    batch.answer_mask[tokens] = False
    for preferred in (batch.preference, batch.reference):
        if preferred is not None:
            preferred[tokens] = 0
    batch.image_index[tokens] = -1
    batch.images[slots] = 0
    batch.image_mask[slots] = False
    if batch.instructions is not None:
        batch.instructions[slots] = -1
