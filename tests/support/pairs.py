"""Batches of images and texts that stand beside them, and a tiny model whose Q-Former learns from them."""

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.assemble import empty_batch, place_row
from data_pipelines.batch import Batch
from data_pipelines.packing import Segment
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import RenderedRecord
from data_pipelines.transforms.pairs import BESIDE
from mllm_jax.models.connectors.q_former import QFormerConfig, QFormerTextConfig
from mllm_jax.models.multimodal import MultimodalConfig
from tests.support.tiny_training import MODEL

SIZE = (8, 8)
WORDS = 24
"""Rows of the word embedding; the last begins a caption."""
LENGTH = 6
"""Longest text in tokens."""


def q_former_model(text: QFormerTextConfig | None = None, scan: bool = True, blocks: int = 2) -> MultimodalConfig:
    """Every block is two layers, but for one block alone."""
    q_former = QFormerConfig(
        queries=4,
        width=16,
        layers=2 * blocks if blocks > 1 else 1,
        cross_attention_every=2 if blocks > 1 else 1,
        heads=4,
        feed_forward_width=24,
        text=text,
        stack={"scan": scan},
    )
    return MODEL.model_copy(update={"connector": q_former})


def pair(number: int, words: int = WORDS - 1) -> RenderedRecord:
    """A text of 2 to LENGTH tokens beside an image."""
    random = np.random.default_rng(number)
    tokens = random.integers(0, words, 2 + number % (LENGTH - 1), np.int32)
    later = np.arange(len(tokens)) > 0
    image = ImagePart(ByteRange(f"{number}.png"))
    return RenderedRecord(str(number), tokens, later, np.zeros_like(later), (0,), (image,), (BESIDE,))


def pair_batch(seed: int, rows: int = 8, slots: int = 1, pairs: int | None = None, length: int = LENGTH) -> Batch:
    """A batch whose first slots hold pairs; None: all slots do."""
    batch = empty_batch(rows, slots * length, slots, SIZE)
    left = rows * slots if pairs is None else pairs
    for row in range(rows):
        numbers = range(row * slots, min(left, (row + 1) * slots))
        segments = tuple(Segment(pair(1000 * seed + number), 0, 0, 0) for number in numbers)
        for placed in place_row(batch, row, segments, 0):
            drawn = np.random.default_rng(int(placed.rendered.key) + 1).integers(0, 256, (*SIZE, 3), np.uint8)
            batch.images[row, placed.first_slot] = drawn
    return jax.tree.map(jnp.asarray, batch)
