"""Streams that end: every record of their epochs in some batch, the same batches on any hosts and after any stop."""

import hashlib
import json
from collections import Counter
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.lanes import Lane
from data_pipelines.loader import Loader, Share
from data_pipelines.positions import fingerprint
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from data_pipelines.stream_end import StreamEnd
from tests.support.tiny_stream import IMAGE_TOKENS, PREPARATION, render, stream_config, tar_bytes, write_pairs

ONCE = {"pairs": {"epochs": 1}, "more": {"epochs": 2}}
MIXTURES = (
    ONCE,
    {"pairs": {"epochs": 1.5}},
    {"pairs": 1, "more": 1, "exhausted": "renormalise"},
    {"pairs": 4, "more": 1, "exhausted": "stop"},
    {"pairs": 1, "more": {"weight": 1, "epochs": 2}, "exhausted": "stop"},
    {"pairs": 1, "more": 1, "temperature": 3, "exhausted": "stop"},
)
SIZES = {"pairs": 52, "more": 9}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Shards with indexes, so that their records are counted."""
    from data_pipelines.indexing import index_shards

    folder = tmp_path_factory.mktemp("shards")
    configs = {"pairs": write_pairs(folder / "a", (30, 5, 0, 17)), "more": write_pairs(folder / "b", (9,), "more")}
    for config in configs.values():
        list(index_shards([config.shards]))
    return configs


def load(sources, config, rows, position=None, lanes=None):
    with Loader(config, sources, PREPARATION, rows, position=position, share=Share(lanes=lanes)) as loader:
        return list(loader)


def keys(batches):
    return [list(loaded.report.keys) for loaded in batches]


def met(batches):
    """How often each source gave each record."""
    counts = Counter(key for loaded in batches for key in loaded.report.keys)
    return {name: {key: count for key, count in counts.items() if f"/{name}-" in key} for name in SIZES}


@settings(max_examples=40, deadline=None)
@given(mixture=st.sampled_from(MIXTURES), lanes=st.sampled_from([1, 2, 4, 8]), turns=st.integers(1, 2), data=st.data())
def test_batches_are_the_same_on_any_hosts_and_after_a_stop(sources, mixture, lanes, turns, data):
    """Hosts are loaders of some lanes; each ends with its own lanes, and what another has left is padding to it."""
    config, rows = stream_config(mixture=mixture, lanes=lanes), lanes * turns
    whole = load(sources, config, rows)
    assert [loaded.last for loaded in whole] == [False] * (len(whole) - 1) + [True]
    stop = data.draw(st.integers(1, len(whole)))
    position = json.loads(json.dumps(whole[stop - 1].position.to_json()))
    assert all(len(json.dumps(lane)) < 64 * 1024 for lane in position["lanes"].values())
    assert keys(load(sources, config, rows, position)) == keys(whole)[stop:]
    hosts = data.draw(st.sampled_from([number for number in (1, 2, 4, 8) if number <= lanes]))
    parts = [load(sources, config, rows, lanes=range(host, lanes, hosts)) for host in range(hosts)]
    for step, loaded in enumerate(whole):
        found = sorted(key for part in parts if step < len(part) for key in part[step].report.keys)
        assert found == sorted(loaded.report.keys)
    assert max(map(len, parts)) == len(whole)


@settings(max_examples=20, deadline=None)
@given(
    epochs=st.tuples(st.sampled_from([1, 2, 2.5]), st.sampled_from([0.5, 1, 3])),
    lanes=st.sampled_from([1, 3, 8, 64]),
    window=st.integers(1, 40),
)
def test_every_record_comes_as_often_as_its_epochs_say(sources, epochs, lanes, window):
    mixture = {name: {"epochs": each} for name, each in zip(SIZES, epochs, strict=True)}
    batches = load(sources, stream_config(mixture=mixture, lanes=lanes, shuffle_window=window), lanes)
    for (name, found), asked in zip(met(batches).items(), epochs, strict=True):
        assert sum(found.values()) == int(asked * SIZES[name])
        assert set(found.values()) <= {int(asked), int(asked) + (asked % 1 > 0)}
        told = batches[-1].report.sources[name]
        assert told.met == told.planned == int(asked * SIZES[name]) and told.epochs == pytest.approx(asked)
    for loaded in batches:
        filled = np.flatnonzero(loaded.batch.segment_ids.any(axis=1))
        assert filled.size and loaded.batch.tokens.shape == (lanes, 64)


def test_stop_ends_a_lane_where_its_first_source_runs_out(sources):
    """Up to there the shares are exact, and what the other source had left is counted."""
    mixture = {"pairs": 1, "more": 1, "exhausted": "stop"}
    batches = load(sources, stream_config(mixture=mixture, lanes=1), 1)
    found = met(batches)
    assert sum(found["more"].values()) == 9 and sum(found["pairs"].values()) in (9, 10)
    told = batches[-1].report.sources["pairs"]
    assert told.planned - told.met == 52 - sum(found["pairs"].values())


def test_renormalise_goes_on_with_what_is_left(sources):
    mixture = {"pairs": 1, "more": 1, "exhausted": "renormalise"}
    batches = load(sources, stream_config(mixture=mixture, lanes=2), 2)
    assert {name: sum(found.values()) for name, found in met(batches).items()} == SIZES


def test_an_evaluation_meets_every_record_once_without_an_index(tmp_path):
    sources = {"held_out": write_pairs(tmp_path, (3, 4))}
    config = stream_config(mixture={"held_out": {"epochs": 1}}, lanes=8)
    (loaded,) = load(sources, config, 8)
    assert sorted(loaded.report.keys) == sorted(set(loaded.report.keys)) and len(loaded.report.keys) == 7


def test_bad_records_are_met_and_counted_and_end_nothing_early(tmp_path):
    members = [(f"{index:04d}.jpg", b"alone") for index in range(4)]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    sources = {"bad": WebDatasetConfig(shards=str(tmp_path / "0.tar")), "good": write_pairs(tmp_path / "b", (5,))}
    mixture = {"bad": {"weight": 1, "epochs": 1}, "good": {"weight": 1, "epochs": 1}}
    batches = load(sources, stream_config(mixture=mixture, skip_quota=1.0), 2)
    assert sum(loaded.report.records for loaded in batches) == 5
    assert sum(loaded.report.skipped.get("missing_caption", 0) for loaded in batches) == 4
    assert batches[-1].report.sources["bad"].met == 4


def test_a_stream_without_a_single_usable_record_has_no_batch(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar_bytes([("0.jpg", b"alone")]))
    sources = {"bad": WebDatasetConfig(shards=str(tmp_path / "0.tar"))}
    assert load(sources, stream_config(mixture={"bad": {"epochs": 1}}, skip_quota=1.0), 2) == []


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=4))
def test_all_processes_end_at_the_same_batch(rows):
    """Each says what its own lanes have left; rows are what each lane of each process gives."""
    longest = max(max(lanes) for lanes in rows)
    for own in rows:
        assert followed(own, rows) == [False] * (longest - 1) + [True] * (longest > 0)


def followed(own, rows):
    """Whether each batch is the last one, as the process with these lanes is told."""
    told = []
    everywhere = iter([[max(lanes) >= step, max(lanes) > step] for lanes in rows] for step in count(1))
    end = StreamEnd(lambda _: next(everywhere))
    for step in count(1):
        if end.reached(max(own) >= step, max(own) > step):
            return told
        told.append(end.last)


def test_a_run_that_began_before_there_were_epochs_goes_on(tmp_path):
    """Its fingerprint is what it was, and so is every row and state of its lanes."""
    configs = {"pairs": write_pairs(tmp_path / "a", (30, 5, 0, 17)), "more": write_pairs(tmp_path / "b", (9,), "more")}
    sources = {name: config.open(Storage()) for name, config in configs.items()}
    config = stream_config(mixture={"pairs": 2, "more": 1.0, "none": 0}, lanes=3)
    assert fingerprint(config, sources, IMAGE_TOKENS)["stream"] == {
        "lanes": 3,
        "seed": 0,
        "shuffle_window": 7,
        "open_shards": 2,
        "open_rows": 2,
        "overlong": "drop",
        "mixture": {"pairs": 2.0, "more": 1.0, "none": 0.0},
        "row_length": 64,
        "images_per_row": 3,
    }
    told = []
    for number in range(3):
        lane = Lane(number, config, sources, render, IMAGE_TOKENS)
        rows = [lane.next_row() for _ in range(40)]
        told += [[segment.rendered.key.rpartition("/")[2] for segment in row] for row in rows] + [lane.state()]
    assert hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16] == "d22357e81ba262d3"
