"""Batches to show: tokens of a small tokenizer, rows made by hand or by records, pixels that tell slots apart."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_pipelines.assemble import Placed, empty_batch, place_row
from data_pipelines.batch import Batch
from data_pipelines.packing import Segment
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import RenderedRecord
from data_pipelines.showing.reading import Reading, shown_rows
from data_pipelines.showing.rows import Shown, ShownRow
from data_pipelines.showing.token_texts import TokenTexts
from data_pipelines.tokenizer import Tokenizer

FEATURES = 3
PICTURE = ImagePart(ByteRange("picture.png"))


def answered(tokenizer: Tokenizer, asked: str, answer: str, images: int = 0, key: str = "a:0") -> RenderedRecord:
    """Images, what is asked, and an answer with an end token, which are supervised."""
    before = [tokenizer.image_id] * FEATURES * images + tokenizer.encode(asked, start=False)
    learned = [*tokenizer.encode(answer, start=False), tokenizer.eos_id]
    supervised = np.arange(len(before) + len(learned)) >= len(before)
    starts = tuple(FEATURES * image for image in range(images))
    tokens = np.array([*before, *learned], np.int32)
    return RenderedRecord(key, tokens, supervised, supervised, starts, (PICTURE,) * images)


def packed(
    rows: Sequence[Sequence[RenderedRecord]], row_length: int = 48, slots: int = 4, **more: bool
) -> tuple[Batch, list[Placed]]:
    """The batch of rows, and what lies where; the pixels of every slot differ."""
    batch = empty_batch(len(rows), row_length, slots, (4, 6), **more)
    placed: list[Placed] = []
    for index, row in enumerate(rows):
        placed += place_row(batch, index, tuple(Segment(each, 0, 0, 0) for each in row), FEATURES)
    drawn = np.random.default_rng(0).integers(0, 256, batch.images.shape, np.uint8)
    batch.images[batch.image_mask] = drawn[batch.image_mask]
    return batch, placed


def read(tokenizer: Tokenizer, batch: Batch, placed: Sequence[Placed], **changes) -> list[ShownRow]:
    reading = Reading(TokenTexts(tokenizer), FEATURES, ("pairs",))
    return list(shown_rows(batch, placed, replace(reading, **changes), number=1))


def shown(rows: Sequence[ShownRow]) -> Shown:
    return Shown("runs/tiny", "align", {"template": "plain"}, tuple(rows), {"too_long": 2})
