"""A model whose connector reads instructions: packed as unpacked, and what the instruction changes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.assemble import empty_batch, place_row
from data_pipelines.batch import Batch
from data_pipelines.packing import Segment
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import RenderedRecord
from mllm_jax.models.connectors.q_former import QFormerConfig, QFormerTextConfig
from mllm_jax.models.multimodal import Multimodal
from tests.support.parameters import drawn_parameters
from tests.support.tiny_training import MODEL

QUERIES, LENGTH, SIZE = 3, 6, (8, 8)
TEXT = QFormerTextConfig(vocab_size=16, max_positions=LENGTH, instruction_tokens=LENGTH)
CONFIG = MODEL.model_copy(
    update={
        "connector": QFormerConfig(queries=QUERIES, width=8, layers=2, heads=2, feed_forward_width=12, text=TEXT),
    }
)
PARAMETERS = drawn_parameters(CONFIG)
PICTURE = ImagePart(ByteRange("picture.png"))


@jax.jit
def logits(batch: Batch) -> jax.Array:
    arrays = batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index
    return Multimodal(CONFIG).apply({"params": PARAMETERS}, *arrays, instructions=batch.instructions)


ENCODE = jax.jit(partial(Multimodal(CONFIG).apply, method="encode_images"))


def segment(number: int, length: int, asked: int) -> Segment:
    """One image at the third token, and an instruction of `asked` tokens."""
    random = np.random.default_rng(number)
    tokens = random.integers(0, 32, length, np.int32)
    instruction = random.integers(0, 16, asked, np.int32)
    supervised = np.ones(length, bool)
    return Segment(RenderedRecord("", tokens, supervised, ~supervised, (2,), (PICTURE,), (), (instruction,)), 0, 0, 0)


def laid_out(rows: list[list[Segment]]) -> Batch:
    batch = empty_batch(2, 20, 3, SIZE, LENGTH)
    for index, row in enumerate(rows):
        for placed in place_row(batch, index, tuple(row), QUERIES):
            pixels = np.random.default_rng(len(placed.rendered.tokens)).integers(0, 256, (*SIZE, 3), np.uint8)
            batch.images[placed.row, placed.first_slot] = pixels
    return jax.tree.map(jnp.asarray, batch)


def test_packed_rows_give_what_rows_of_their_own_give() -> None:
    first, second = segment(0, 9, asked=6), segment(1, 10, asked=2)
    packed, alone = logits(laid_out([[first, second]])), logits(laid_out([[first], [second]]))
    np.testing.assert_allclose(packed[0, :9], alone[0, :9], rtol=0, atol=2e-5)
    np.testing.assert_allclose(packed[0, 9:19], alone[1, :10], rtol=0, atol=2e-5)


def test_an_image_gives_other_features_to_another_instruction() -> None:
    batch = laid_out([[segment(0, 9, asked=4)]])
    features = ENCODE({"params": PARAMETERS}, batch.images, batch.image_mask, batch.instructions)
    other = batch.instructions.at[0, 0, 1].add(-1)
    changed = ENCODE({"params": PARAMETERS}, batch.images, batch.image_mask, other)
    assert features.shape == (2, 3, QUERIES, CONFIG.decoder.width)
    assert np.abs(changed[0, 0] - features[0, 0]).max() > 1e-2
    np.testing.assert_array_equal(changed[0, 1:], features[0, 1:])
    assert not np.asarray(features[1]).any()


def test_a_batch_without_instructions_is_refused() -> None:
    batch = laid_out([[segment(0, 9, asked=4)]])._replace(instructions=None)
    with pytest.raises(ValueError, match="hand it the batch's instructions"):
        jax.eval_shape(logits, batch)
