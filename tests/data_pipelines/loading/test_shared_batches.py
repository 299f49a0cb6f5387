import resource

import numpy as np
import pytest

from data_pipelines.assemble import empty_batch
from data_pipelines.loading.shared_batches import SharedBatches

ONE_ROW = empty_batch(1, 7, 3, (2, 5), instruction_tokens=4, preferences=True)


def fields(batch):
    return {name: array for name, array in batch._asdict().items() if array is not None}


def test_what_one_writes_the_other_reads_and_nothing_lies_over_another():
    with SharedBatches(ONE_ROW, rows=5, count=3) as ours, SharedBatches(ONE_ROW, 5, 3, ours.descriptor) as theirs:
        written = {}
        for number in range(3):
            for first, stop in ((0, 2), (2, 5)):
                for order, array in enumerate(fields(theirs.views(number, first, stop)).values()):
                    array[...] = (40 * number + 10 * first + order) % 2 if array.dtype == bool else 40 * number + order
            written[number] = {name: array.copy() for name, array in fields(theirs.views(number, 0, 5)).items()}
        for number in range(3):
            read = fields(ours.copy(number))
            assert read.keys() == fields(ONE_ROW).keys()
            for name, array in read.items():
                assert array.shape == (5, *getattr(ONE_ROW, name).shape[1:]) and array.dtype == written[0][name].dtype
                assert np.array_equal(array, written[number][name]) and array.flags.c_contiguous
        theirs.descriptor = -1  # It is one of this process, which closes it once.


def test_systems_without_anonymous_files_take_a_deleted_one(monkeypatch):
    monkeypatch.delattr("os.memfd_create", raising=False)
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    with SharedBatches(ONE_ROW, 2, 2) as ours:
        ours.views(1, 0, 2).tokens[...] = 7
        assert (ours.copy(1).tokens == 7).all() and not ours.copy(0).tokens.any()


def test_rows_are_padded_again_but_for_their_pixels():
    with SharedBatches(ONE_ROW, rows=4, count=1) as shared:
        for array in fields(shared.views(0, 0, 4)).values():
            array[...] = 1
        shared.padded(0, 1, 3)
        for name, array in fields(shared.copy(0)).items():
            padding = np.ones_like(array) if name == "images" else np.broadcast_to(getattr(ONE_ROW, name), array.shape)
            assert np.array_equal(array[1:3], padding[1:3]), name
            assert (array[[0, 3]] == 1).all()


def test_a_copy_outlives_the_memory():
    with SharedBatches(ONE_ROW, rows=4, count=1) as shared:
        shared.views(0, 0, 4).tokens[...] = 3
        copied = shared.copy(0)
        shared.views(0, 0, 4).tokens[...] = 4
    assert (copied.tokens == 3).all()


def test_too_little_memory_is_said_before_anything_starts():
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, former[1]))
    try:
        with pytest.raises(OSError, match=r"2 MB of memory for 3 batches, .* Lower data.prefetch"):
            SharedBatches(ONE_ROW, rows=1000, count=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
