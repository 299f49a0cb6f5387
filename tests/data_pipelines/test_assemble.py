from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.assemble import empty_batch, erase, place_row
from data_pipelines.packing import Segment
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import ImageLayout, RenderedRecord

PICTURE = ImagePart(ByteRange("picture.png"))


def segment(tokens, supervised, image_starts=()):
    marks = np.array(supervised, bool), np.array(supervised, bool)
    images = (PICTURE,) * len(image_starts)
    return Segment(RenderedRecord("a:b", np.array(tokens, np.int32), *marks, image_starts, images), 0, 0, 0)


ROW = (segment([5, 1, 1, 6, 7], [0, 0, 0, 1, 1], (1,)), segment([8, 1, 1, 9], [0, 0, 0, 1], (1,)))


@pytest.fixture
def batch():
    batch = empty_batch(rows=2, row_length=12, images_per_row=3, image_size=(2, 4))
    batch.images[:] = 7
    return batch


def test_a_row_of_two_segments(batch):
    place_row(batch, 1, ROW, image_tokens=2)
    assert batch.tokens[1].tolist() == [5, 1, 1, 6, 7, 8, 1, 1, 9, 0, 0, 0]
    assert batch.segment_ids[1].tolist() == [1] * 5 + [2] * 4 + [0] * 3
    assert batch.positions[1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]
    assert batch.image_index[1].tolist() == [-1, 0, 1, -1, -1, -1, 2, 3, -1, -1, -1, -1]
    assert batch.image_mask[1].tolist() == [True, True, False]
    assert np.flatnonzero(batch.answer_mask[1]).tolist() == [3, 4, 8]
    assert not batch.segment_ids[0].any()


def test_a_target_is_the_next_token_and_never_of_the_next_segment(batch):
    place_row(batch, 0, ROW, image_tokens=2)
    assert batch.targets[0].tolist() == [1, 1, 6, 7, 0, 1, 1, 9, 0, 0, 0, 0]
    assert batch.loss_weights[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0]


def test_a_segment_with_a_bad_image_becomes_padding_and_the_rest_stays(batch):
    placed = place_row(batch, 0, ROW, image_tokens=2)
    whole = [array.copy() for array in batch if array is not None]
    erase(batch, placed[0])
    assert batch.segment_ids[0].tolist() == [0] * 5 + [2] * 4 + [0] * 3
    assert batch.image_mask[0].tolist() == [False, True, False]
    assert np.flatnonzero(batch.answer_mask[0]).tolist() == [8]
    assert batch.image_index[0].tolist() == [-1] * 6 + [2, 3] + [-1] * 4
    assert not batch.images[0, 0].any() and batch.images[0, 1].all()
    for name, array, former in zip(batch._fields[:5], batch[:5], whole[:5], strict=True):
        assert not array[0, :5].any(), name
        assert (array[0, 5:] == former[0, 5:]).all(), name


def test_instructions_stand_beside_the_slots_of_their_images():
    tiled = ImageLayout(2, np.array([0, 2], np.int32))
    asked = [np.array([4, 5], np.int32), np.array([6], np.int32)]
    first = replace(ROW[0].rendered, layouts=(tiled,), instructions=(asked[0],))
    second = replace(ROW[1].rendered, layouts=(ImageLayout(1, np.array([0, 1], np.int32)),), instructions=(asked[1],))
    batch = empty_batch(rows=1, row_length=12, images_per_row=4, image_size=(2, 4), instruction_tokens=3)
    placed = place_row(batch, 0, tuple(Segment(each, 0, 0, 0) for each in (first, second)), image_tokens=2)
    assert batch.instructions[0].tolist() == [[4, 5, -1], [4, 5, -1], [6, -1, -1], [-1, -1, -1]]
    erase(batch, placed[0])
    assert batch.instructions[0].tolist() == [[-1] * 3, [-1] * 3, [6, -1, -1], [-1] * 3]


def test_without_instructions_a_batch_has_none(batch):
    place_row(batch, 0, ROW, image_tokens=2)
    assert batch.instructions is None
