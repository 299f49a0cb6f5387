import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.lanes import Lane
from data_pipelines.quota import QuotaExceededError, Skip
from data_pipelines.rendered import RenderError
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from tests.support.tiny_stream import IMAGE_TOKENS, pair, render, stream_config, tar_bytes, write_pairs


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    configs = {"pairs": write_pairs(folder / "a", (30, 5, 0, 17)), "more": write_pairs(folder / "b", (9,), "more")}
    return {name: config.open(Storage()) for name, config in configs.items()}


def open_lane(index, config, sources, state=None):
    return Lane(index, config, sources, render, IMAGE_TOKENS, state)


def keys(rows):
    return [[segment.rendered.key for segment in row] for row in rows]


MIXTURES = st.sampled_from([{"pairs": 1.0}, {"pairs": 2.0, "more": 1.0}, {"pairs": 0.0, "more": 5.0}])


@settings(max_examples=40, deadline=None)
@given(
    mixture=MIXTURES,
    lanes=st.integers(1, 5),
    window=st.integers(1, 40),
    open_shards=st.integers(1, 3),
    open_rows=st.integers(1, 4),
    stop=st.integers(0, 15),
)
def test_a_lane_goes_on_where_its_json_says(sources, mixture, lanes, window, open_shards, open_rows, stop):
    config = stream_config(
        mixture=mixture, lanes=lanes, shuffle_window=window, open_shards=open_shards, open_rows=open_rows
    )
    whole = open_lane(lanes - 1, config, sources)
    for _ in range(stop):
        whole.next_row()
    saved = json.dumps(whole.state())
    resumed = open_lane(lanes - 1, config, sources, json.loads(saved))
    assert len(saved) < 64 * 1024
    assert resumed.state() == whole.state()
    assert keys(resumed.next_row() for _ in range(8)) == keys(whole.next_row() for _ in range(8))
    assert resumed.state() == whole.state()


def test_lanes_share_an_epoch_and_repeat_nothing(sources):
    """All lanes together meet every record as often as any other, within what is still shuffled and waiting."""
    config = stream_config(lanes=3, open_rows=1, shuffle_window=1, open_shards=1)
    met = Counter()
    for index in range(3):
        lane = open_lane(index, config, sources)
        for _ in range(60):
            met.update(segment.rendered.key for segment in lane.next_row())
    assert len(met) == 52 and max(met.values()) - min(met.values()) <= 4


def test_lanes_and_seeds_differ(sources):
    rows = [
        keys([open_lane(index, stream_config(seed=seed), sources).next_row()]) for index in (0, 1) for seed in (0, 1)
    ]
    assert len({str(row) for row in rows}) == 4


def test_shares_of_a_mixture_are_exact(sources):
    lane = open_lane(0, stream_config(mixture={"pairs": 3.0, "more": 1.0}), sources)
    for _ in range(40):
        lane.next_row()
    good = {name: state["good"] for name, state in lane.state()["sources"].items()}
    assert abs(good["pairs"] - 3 * good["more"]) <= 3


def test_replay_reads_no_caption_that_was_consumed(sources, monkeypatch):
    config = stream_config(shuffle_window=40)
    lane = open_lane(0, config, sources)
    for _ in range(12):
        lane.next_row()
    state = lane.state()
    reads = []
    original = type(sources["pairs"]).read
    monkeypatch.setattr(type(sources["pairs"]), "read", lambda self, entry: reads.append(0) or original(self, entry))
    open_lane(0, config, sources, state)
    assert len(reads) == len(state["waiting"]) // 4


def bad_shard(folder, good, bad):
    members = [member for index in range(good) for member in pair(f"{index:04d}", "text")]
    members += [(f"{index:04d}.jpg", b"alone") for index in range(good, good + bad)]
    (folder / "0.tar").write_bytes(tar_bytes(members))
    return {"pairs": WebDatasetConfig(shards=str(folder / "0.tar")).open(Storage())}


def test_bad_records_are_counted_and_stop_the_run_past_the_quota(tmp_path):
    sources = bad_shard(tmp_path, good=90, bad=10)
    lane = open_lane(0, stream_config(lanes=1, skip_quota=0.2), sources)
    for _ in range(30):
        lane.next_row()
    assert lane.tally.skipped["missing_caption"] == len(lane.take_skips()) > 0
    strict = open_lane(0, stream_config(lanes=1, skip_quota=0.05), sources)
    with pytest.raises(QuotaExceededError, match="missing_caption"):
        for _ in range(1000):
            strict.next_row()


def test_a_source_without_a_usable_record_is_an_error_and_no_endless_loop(tmp_path):
    sources = bad_shard(tmp_path, good=0, bad=10)
    with pytest.raises(ValueError, match="gave no usable record"):
        open_lane(0, stream_config(lanes=1, skip_quota=1.0), sources).next_row()


def test_a_changed_template_is_noticed(sources):
    lane = open_lane(0, stream_config(), sources)
    lane.next_row()

    def longer(record):
        turns = (*record.turns, record.turns[-1])
        return render(type(record)(record.key, turns))

    with pytest.raises(ValueError, match="the chat template or the tokenizer changed"):
        Lane(0, stream_config(), sources, longer, IMAGE_TOKENS, lane.state())


@pytest.mark.parametrize("mixture", [{}, {"pairs": 0.0}, {"pairs": -1.0}, {"pairs": float("inf")}])
def test_weights_that_say_nothing_are_an_error(mixture):
    with pytest.raises(ValidationError, match=r"weights are finite|greater than or equal to 0"):
        stream_config(mixture=mixture)


def test_a_record_that_the_template_cannot_express_is_skipped_and_counted(sources):
    def choosy(record):
        if int(record.key[-1]) % 2:
            raise RenderError("token_boundary", "no boundary before the answer")
        return render(record)

    lane = Lane(0, stream_config(skip_quota=1.0), sources, choosy, IMAGE_TOKENS)
    met = [segment.rendered.key for _ in range(10) for segment in lane.next_row()]
    assert met and all(int(key[-1]) % 2 == 0 for key in met)
    assert lane.tally.skipped["token_boundary"] > 0


def test_what_is_left_out_of_a_record_is_counted_once_and_stops_nothing(sources):
    """Images that a source leaves out, and what is cut off: also over a restart, which reads what waits again."""
    config = stream_config(skip_quota=0.0, unfit_quota=0.0, overlong="cut", row_length=12)
    unwanted = Skip("filtered_similarity", "key#image", "0.1 is below 0.2")

    class LeavingOut:
        def __init__(self, source):
            self.source = source

        def read(self, entry):
            return replace(self.source.read(entry), left_out=(unwanted,) * 2)

        def __getattr__(self, name):
            return getattr(self.source, name)

    wrapped = {name: LeavingOut(source) for name, source in sources.items()}
    lane = open_lane(0, config, wrapped)
    for _ in range(10):
        lane.next_row()
    assert lane.tally.skipped["filtered_similarity"] == 2 * lane.tally.seen
    assert lane.tally.skipped["filtered_tail"] > 0
    assert {skip.cause for skip in lane.take_skips()} == {"filtered_similarity", "filtered_tail"}
    again = open_lane(0, config, wrapped, json.loads(json.dumps(lane.state())))
    assert again.tally == lane.tally and not again.take_skips()
