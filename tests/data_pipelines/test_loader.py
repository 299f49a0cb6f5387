import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.loader import Loader, Share
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.positions import PositionMismatchError
from data_pipelines.preparation import Preparation
from data_pipelines.quota import QuotaExceededError
from data_pipelines.sources.webdataset import WebDatasetConfig
from tests.support.tiny_stream import (
    BAD_IMAGE,
    IMAGE_TOKENS,
    PREPARATION,
    decode,
    pair,
    render,
    stream_config,
    tar_bytes,
    write_pairs,
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {"pairs": write_pairs(folder / "a", (30, 5, 17)), "more": write_pairs(folder / "b", (9,), "more")}


def load(sources, batches, config=None, position=None, rows=4, preparation=PREPARATION, **options):
    """The first batches, as the loader gives them."""
    with Loader(config or stream_config(), sources, preparation, rows, position=position, **options) as loader:
        return [next(loader) for _ in range(batches)]


def same(first, second):
    return all(np.array_equal(one, two) for one, two in zip(first.batch, second.batch, strict=True))


def test_a_batch_is_what_the_contract_says(sources):
    (loaded,) = load(sources, 1)
    batch = loaded.batch
    assert batch.tokens.shape == batch.targets.shape == batch.image_index.shape == (4, 64)
    assert batch.images.shape == (4, 3, 4, 4, 3) and batch.images.dtype == np.uint8
    assert loaded.report.images == batch.image_mask.sum() == loaded.report.records == len(loaded.report.keys)
    assert np.isclose(loaded.report.padding_share, (batch.segment_ids == 0).mean())
    for row in range(4):
        slots = batch.image_index[row][batch.image_index[row] >= 0]
        assert slots.tolist() == list(range(IMAGE_TOKENS * batch.image_mask[row].sum()))
        assert (batch.tokens[row][batch.image_index[row] >= 0] == 1).all()


def test_pixels_stand_in_the_slot_of_their_record(sources):
    (loaded,) = load(sources, 1, rows=2, config=stream_config(lanes=1))
    keys = iter(loaded.report.keys)
    for row in range(2):
        for slot in np.flatnonzero(loaded.batch.image_mask[row]):
            name = next(keys).rpartition(":")[2]
            assert np.array_equal(loaded.batch.images[row, slot], decode(f"pixels of {name}".encode()))


def test_records_lie_where_the_batch_has_them(sources):
    (loaded,) = load(sources, 1, stream_config(mixture={"more": 1.0, "pairs": 1.0}))
    batch = loaded.batch
    assert [record.rendered.key for record in loaded.records] == list(loaded.report.keys)
    for record in loaded.records:
        stop = record.start + record.rendered.length
        assert np.array_equal(batch.tokens[record.row, record.start : stop], record.rendered.tokens)
        assert batch.positions[record.row, record.start] == 0
        name = record.rendered.key.rpartition(":")[2]
        pixels = batch.images[record.row, record.first_slot]
        assert np.array_equal(pixels, decode(f"pixels of {name}".encode()))
        assert ("more-" in record.rendered.key) == (record.source == 0)


def test_some_lanes_alone_give_the_same_rows(sources):
    config = stream_config(lanes=4)
    (whole,) = load(sources, 1, config, rows=8)
    (some,) = load(sources, 1, config, rows=8, share=Share(lanes=[1, 2]))
    for one, all_rows in zip(some.batch, whole.batch, strict=True):
        assert one is None or np.array_equal(one, all_rows[2:6])


@settings(max_examples=15, deadline=None)
@given(threads=st.integers(1, 4), prefetch=st.integers(1, 4), stop=st.integers(1, 6), lanes=st.sampled_from([1, 2, 4]))
def test_a_resumed_stream_gives_identical_batches(sources, threads, prefetch, stop, lanes):
    config = stream_config(mixture={"pairs": 2.0, "more": 1.0}, lanes=lanes)
    whole = load(sources, 8, config)
    begun = load(sources, stop, config, work=LoaderConfig(threads=threads, prefetch=prefetch))
    position = json.loads(json.dumps(begun[-1].position.to_json()))
    resumed = load(sources, 8 - stop, config, position, work=LoaderConfig(threads=threads, prefetch=prefetch))
    assert all(same(one, two) for one, two in zip(whole, begun + resumed, strict=True))
    assert [one.position for one in whole] == [two.position for two in begun + resumed]


def test_the_number_of_rows_may_change_on_the_way(sources):
    wide, narrow = load(sources, 2, rows=8), load(sources, 4, rows=4)
    lane_rows = [np.concatenate([part.batch.tokens[:2] for part in narrow]), wide[0].batch.tokens[:4]]
    assert np.array_equal(lane_rows[0][:4], lane_rows[1])
    assert wide[0].position.lanes == narrow[1].position.lanes


@pytest.mark.parametrize(
    "change", [{"lanes": 4}, {"seed": 1}, {"mixture": {"pairs": 1.0, "more": 0.5}}, {"row_length": 65}]
)
def test_another_stream_refuses_a_position_and_says_what_changed(sources, change):
    position = load(sources, 1)[0].position.to_json()
    with pytest.raises(PositionMismatchError, match=next(iter(change))):
        Loader(stream_config(**change), sources, PREPARATION, 4, position=position)


def test_another_shard_list_refuses_a_position(tmp_path):
    former = {"pairs": write_pairs(tmp_path, (9, 9))}
    position = load(former, 1)[0].position.to_json()
    with pytest.raises(PositionMismatchError, match="shards: was 2, is 3"):
        Loader(stream_config(), {"pairs": write_pairs(tmp_path, (9, 9, 9))}, PREPARATION, 4, position=position)


def test_quotas_may_change_on_resume(sources):
    position = load(sources, 1)[0].position.to_json()
    load(sources, 1, stream_config(skip_quota=0.5), position)


@pytest.fixture
def spoilt(tmp_path):
    """Every tenth image is bad."""
    members = []
    for index in range(40):
        members += pair(f"{index:04d}", "t" * (index % 9 + 1), BAD_IMAGE if index % 10 == 0 else None)
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    return {"pairs": WebDatasetConfig(shards=str(tmp_path / "0.tar"))}


def test_a_bad_image_becomes_padding_and_is_counted(spoilt, caplog):
    batches = load(spoilt, 6, stream_config(skip_quota=0.5))
    skipped = sum(loaded.report.skipped.get("image_corrupt", 0) for loaded in batches)
    positions = batches[-1].position.lanes.values()
    assert skipped == sum(lane["undecodable"]["image_corrupt"] for lane in positions) > 0
    assert caplog.text.count("image_corrupt") == 1
    for loaded in batches:
        batch = loaded.batch
        assert not any(key.endswith(("0:0000", "0010", "0020", "0030")) for key in loaded.report.keys)
        assert batch.images[~batch.image_mask].sum() == 0
        assert loaded.report.records == batch.image_mask.sum()
        lost = [record for record in loaded.records if record.lost is not None]
        assert len(loaded.records) == loaded.report.records + len(lost)
        for record in lost:
            assert record.lost.cause == "image_corrupt" and record.rendered.key == record.lost.key
            assert not batch.segment_ids[record.row, record.start : record.start + record.rendered.length].any()
        assert (batch.loss_weights[batch.segment_ids == 0] == 0).all()
        assert (batch.image_index[batch.segment_ids == 0] == -1).all()


def test_bad_images_stop_the_run_past_the_quota_also_after_a_resume(spoilt):
    allowed = load(spoilt, 20, stream_config(skip_quota=0.5))
    with pytest.raises(QuotaExceededError, match="image_corrupt"):
        load(spoilt, 200, stream_config(skip_quota=0.02))
    with pytest.raises(QuotaExceededError, match="image_corrupt"):
        load(spoilt, 1, stream_config(skip_quota=0.001), allowed[-1].position.to_json())


def test_an_error_in_a_thread_comes_out_of_next(sources):
    def broken(data):
        raise RuntimeError("the decoder broke")

    with pytest.raises(RuntimeError, match="the decoder broke"):
        load(sources, 1, preparation=Preparation(render, broken, IMAGE_TOKENS, (4, 4)))


def test_an_error_comes_after_the_batches_before_it(sources):
    def batches_until_the_error(prefetch):
        seen = []

        def broken(record):
            seen.append(record.key)
            if len(seen) > 90:
                raise RuntimeError("the template broke")
            return render(record)

        preparation, work = Preparation(broken, decode, IMAGE_TOKENS, (4, 4)), LoaderConfig(prefetch=prefetch)
        with Loader(stream_config(), sources, preparation, 4, work=work) as loader:
            for count in range(100):
                try:
                    next(loader)
                except RuntimeError:
                    return count

    assert 0 < batches_until_the_error(prefetch=1) == batches_until_the_error(prefetch=6) < 100


def test_pixels_of_another_size_are_an_error_that_names_the_record(sources):
    wrong = Preparation(render, decode, IMAGE_TOKENS, (8, 8))
    with pytest.raises(ValueError, match=r"tar:\d+ decoded to \(4, 4, 3\); the slot is \(8, 8, 3\)"):
        load(sources, 1, preparation=wrong)


def test_a_closed_loader_leaves_no_thread_and_gives_nothing(sources):
    before = threading.active_count()
    loader = Loader(stream_config(), sources, PREPARATION, 4, work=LoaderConfig(threads=3))
    next(loader)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(loader)


def test_rows_that_do_not_divide_into_lanes_and_unknown_sources_are_errors(sources):
    with pytest.raises(ValueError, match="rows = 3 must be a multiple of lanes = 2"):
        Loader(stream_config(), sources, PREPARATION, 3)
    with pytest.raises(ValueError, match=r"names the sources \['pears'\]"):
        Loader(stream_config(mixture={"pears": 1.0}), sources, PREPARATION, 4)
