"""A batch of preference pairs for tests of training: two pairs a row, one of them with an image in both segments."""

import numpy as np

from data_pipelines.assemble import empty_batch, place_row
from data_pipelines.batch import Batch
from data_pipelines.packing import Segment
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import RenderedRecord
from tests.support.tiny_training import IMAGE_TOKENS, MODEL

ROW_LENGTH, SLOTS = 48, 2
LEFT_OUT = frozenset({7, 15})
"""Numbers of the sixteen drawn pairs that `pair_batch` does not hold."""
PICTURE = ImagePart(ByteRange("picture.png"))


def answered(prompt: np.ndarray, answer: np.ndarray, images: int, image_tokens: int) -> RenderedRecord:
    """A prompt that its images open, and an answer, which is supervised."""
    shown = np.zeros(images * image_tokens, np.int32)
    tokens = np.concatenate([shown, prompt, answer]).astype(np.int32)
    supervised = np.arange(len(tokens)) >= len(tokens) - len(answer)
    starts = tuple(image_tokens * image for image in range(images))
    return RenderedRecord("drawn", tokens, supervised, supervised, starts, (PICTURE,) * images)


def drawn_pair(random: np.random.Generator, images: int, reference: bool, image_tokens: int) -> RenderedRecord:
    """A pair whose answers differ in length; its reference scores, if any, are those of no model."""
    draw = lambda most: random.integers(1, MODEL.decoder.vocab_size, random.integers(2, most + 1))  # noqa: E731
    prompt, better, worse = draw(4), draw(5), draw(5)
    chosen, rejected = (answered(prompt, answer, images, image_tokens) for answer in (better, worse))
    scores = (-float(3 * random.random()), -float(3 * random.random())) if reference else None
    return RenderedRecord(
        "drawn",
        chosen.tokens,
        chosen.supervised,
        chosen.in_answer,
        chosen.image_starts,
        chosen.images,
        rejected=rejected,
        reference=scores,
    )


def drawn_pairs(
    seed: int, count: int, reference: bool = False, image_tokens: int = IMAGE_TOKENS
) -> list[RenderedRecord]:
    """Every other pair has an image."""
    random = np.random.default_rng(seed)
    return [drawn_pair(random, number % 2, reference, image_tokens) for number in range(count)]


def batch_of(rows: list[list[RenderedRecord]], image_tokens: int = IMAGE_TOKENS) -> Batch:
    """Packed rows; the pixels of an image depend on the pair that shows it."""
    references = any(pair.reference is not None for row in rows for pair in row)
    size = MODEL.encoder.image_size
    batch = empty_batch(len(rows), ROW_LENGTH, SLOTS, size, preferences=True, references=references)
    for index, row in enumerate(rows):
        segments = tuple(Segment(pair, 0, 0, 0) for pair in row)
        for placed in place_row(batch, index, segments, image_tokens):
            seed = int(placed.rendered.tokens.sum())
            pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
            batch.images[index, placed.first_slot : placed.first_slot + placed.rendered.slots] = pixels
    return batch


def pair_batch(image_tokens: int = IMAGE_TOKENS) -> Batch:
    """Eight rows of two pairs, but of one in every fourth."""
    pairs = [
        None if number in LEFT_OUT else pair
        for number, pair in enumerate(drawn_pairs(0, 16, image_tokens=image_tokens))
    ]
    return batch_of([[pair for pair in pairs[first : first + 2] if pair] for first in range(0, 16, 2)], image_tokens)
