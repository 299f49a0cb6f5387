"""What a loader's speed is made of; how fast it is depends on the machine and is never asserted."""

from functools import partial

import numpy as np
import pytest

from data_pipelines.blank_images import without_decoding
from data_pipelines.loader import Loader
from data_pipelines.loader_speed import loader_speed
from tests.support.tiny_stream import PREPARATION, stream_config, write_pairs


@pytest.fixture
def open_loader(tmp_path):
    source = write_pairs(tmp_path, [12, 9])
    return partial(Loader, stream_config(), {"pairs": source}, rows=4)


def test_a_speed_counts_what_the_batches_hold(open_loader):
    warm = []
    speed = loader_speed(partial(open_loader, preparation=PREPARATION), seconds=0.05, warm=warm.append)
    assert warm and warm[0].tokens.shape == (4, 64)
    # Every record has one image, and a row three slots.
    assert speed.images_per_second == pytest.approx(speed.samples_per_second)
    assert 1 <= speed.samples_per_row == speed.images_per_row <= 3
    assert 20 < speed.tokens_per_row <= 64
    assert speed.rows_per_second < speed.samples_per_second < speed.tokens_per_second
    assert 0 < speed.packing_ms_per_sample < speed.cpu_ms_per_sample


def test_without_decoding_rows_are_the_same_and_images_black(open_loader):
    with (
        open_loader(preparation=PREPARATION) as decoding,
        open_loader(preparation=without_decoding(PREPARATION)) as not_decoding,
    ):
        theirs, ours = next(decoding), next(not_decoding)
    assert ours.report.keys == theirs.report.keys
    np.testing.assert_array_equal(ours.batch.tokens, theirs.batch.tokens)
    assert theirs.batch.images.any() and not ours.batch.images.any()
