"""What the loader's processes build is what its threads build."""

import json
import time

import numpy as np
import pytest

from data_pipelines.loader import Loader
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.positions import PositionMismatchError
from data_pipelines.quota import QuotaExceededError
from tests.support.described import open_described, same, stream, write_pictures
from tests.support.tiny_stream import PREPARATION


@pytest.fixture
def load(sources, described):
    def load(processes, batches, kind="plain", position=None, **options):
        with open_described(described[kind], sources, processes, position, **options) as loader:
            return [next(loader) for _ in range(batches)]

    return load


@pytest.mark.parametrize(("kind", "processes"), [("plain", 1), ("tiled", 2), ("augmented", 3)])
def test_any_number_of_processes_gives_what_threads_give(load, kind, processes):
    threads, others = load(0, 4, kind), load(processes, 4, kind)
    assert all(same(one, two) for one, two in zip(threads, others, strict=True))
    assert threads[0].batch.images.any() and others[0].records is None


def test_a_stream_goes_on_with_another_number_of_processes(load):
    whole, begun = load(0, 6), load(3, 2)
    position = json.loads(json.dumps(begun[-1].position.to_json()))
    resumed = load(2, 2, position=position)
    last = load(0, 2, position=json.loads(json.dumps(resumed[-1].position.to_json())))
    assert all(same(one, two) for one, two in zip(whole, begun + resumed + last, strict=True))


def test_some_lanes_alone_give_the_same_rows_by_as_many_processes_at_most(load):
    (whole,), (some,) = load(0, 1), load(50, 1, lanes=range(1, 4))
    assert np.array_equal(whole.batch.images[2:8], some.batch.images)
    assert some.position.lanes == {lane: whole.position.lanes[lane] for lane in range(1, 4)}


def test_memory_that_is_used_again_changes_no_batch_that_was_handed_out(load, described, sources):
    """However far ahead the processes are, and how often they have written everywhere."""
    expected = load(0, 12)
    with open_described(described["plain"], sources, 2, prefetch=1) as loader:
        kept = []
        for _ in range(12):
            kept.append(next(loader))
            time.sleep(0.02)  # Time for the processes to write as far ahead as they may.
    assert all(same(one, two) for one, two in zip(expected, kept, strict=True))


@pytest.mark.parametrize("processes", [1, 4])
def test_a_stream_that_ends_gives_all_of_it_and_ends_alike(described, sources, processes):
    """Lanes end one after another: those that have ended give padding until the last has."""
    config = stream(mixture={"pairs": {"epochs": 1}, "exhausted": "stop"})
    found = []
    for count in (0, processes):
        with open_described(described["plain"], sources, count, config=config) as loader:
            found.append(list(loader))
    assert all(same(one, two) and one.last == two.last for one, two in zip(*found, strict=True))
    keys = [key for loaded in found[1] for key in loaded.report.keys]
    assert len(keys) == len(set(keys)) == 30 + 5 + 17
    assert [loaded.last for loaded in found[1]] == [False] * (len(found[1]) - 1) + [True]
    assert found[1][-1].report.sources["pairs"].met == len(keys)


def test_bad_images_are_counted_and_logged_alike_and_stop_the_run_past_the_quota(described, tmp_path, caplog):
    spoilt = write_pictures(tmp_path, (40, 20), bad_every=7)
    found, logs = [], []
    for processes in (0, 3):
        with open_described(described["plain"], spoilt, processes, config=stream(skip_quota=0.5)) as loader:
            found.append([next(loader) for _ in range(5)])
        logs.append(caplog.text)
        caplog.clear()
    assert all(same(one, two) for one, two in zip(*found, strict=True))
    assert sum(loaded.report.skipped["image_unsupported"] for loaded in found[1]) > 3
    assert logs[0] == logs[1] and "image_unsupported" in logs[0]
    with (
        open_described(described["plain"], spoilt, 2, config=stream(skip_quota=0.01)) as loader,
        pytest.raises(QuotaExceededError, match="image_unsupported"),
    ):
        for _ in range(100):
            next(loader)


def test_what_is_wrong_from_the_start_is_raised_by_the_constructor(described, sources, load):
    position = load(0, 1)[0].position.to_json()
    for state in position["lanes"].values():
        state["lane"]["waiting"][3] += 1
    with pytest.raises(ValueError, match="tokens when the position was saved"):
        open_described(described["plain"], sources, 2, position)
    with pytest.raises(PositionMismatchError, match="seed"):
        open_described(described["plain"], sources, 2, load(1, 1)[0].position.to_json(), config=stream(seed=1))
    with pytest.raises(ValueError, match="has no description"):
        Loader(stream(), sources, PREPARATION, 6, work=LoaderConfig(processes=2))
