"""What data hold: accumulators against NumPy, and every number of a small data set made by hand."""

import io
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.quota import CUT, Skip
from data_pipelines.record import ImageBytes, ImagePart, Record, TextPart, Turn
from data_pipelines.sources.source import Entry
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.statistics.copies import Copies, hash_of
from data_pipelines.statistics.histogram import ACCURACY, Histogram
from data_pipelines.statistics.language import UNCLEAR, language_identifier
from data_pipelines.statistics.plots import plots
from data_pipelines.statistics.row_statistics import row_statistics
from data_pipelines.statistics.sample import spread_entries
from data_pipelines.statistics.source_statistics import Reader, SourceStatistics
from data_pipelines.storage import Storage
from data_pipelines.transforms.image import ImageTransformConfig, stated_size
from tests.support.tiny_stream import IMAGE_TOKENS, MemorySource, pair, render, stream_config, tar_bytes

VALUES = st.lists(st.floats(0, 1e9, allow_subnormal=False) | st.integers(0, 3000), max_size=60)


def histogram_of(values) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@settings(max_examples=150, deadline=None)
@given(values=VALUES.filter(bool), numerator=st.integers(0, 64))
def test_a_quantile_is_within_the_stated_error_of_numpys(values, numerator):
    histogram = histogram_of(values)
    expected = np.quantile(values, numerator / 64, method="lower")
    assert histogram.quantile(numerator / 64) == pytest.approx(expected, rel=ACCURACY * (1 + 1e-9), abs=0)
    assert (histogram.count, histogram.least, histogram.most) == (len(values), min(values), max(values))
    assert histogram.mean == pytest.approx(np.mean(values))


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 99), min_size=1, max_size=60), numerator=st.integers(0, 64))
def test_quantiles_of_small_whole_numbers_are_exact(values, numerator):
    assert histogram_of(values).quantile(numerator / 64) == np.quantile(values, numerator / 64, method="lower")


@settings(max_examples=100, deadline=None)
@given(first=VALUES, second=VALUES)
def test_histograms_of_parts_add_up_to_that_of_all(first, second):
    merged, whole = histogram_of(first), histogram_of(first + second)
    merged.merge(histogram_of(second))
    assert merged.buckets() == whole.buckets() and merged.count == whole.count
    assert (merged.least, merged.most) == (whole.least, whole.most)
    assert merged.total == pytest.approx(whole.total)


def test_any_number_of_values_takes_a_bounded_number_of_buckets():
    random = np.random.default_rng(0)
    assert len(histogram_of(10 ** random.uniform(0, 6, 20_000)).buckets()) <= 1386


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_what_no_histogram_can_hold_is_refused(value):
    with pytest.raises(ValueError, match="expected a finite number of at least 0"):
        Histogram().add(value)


def copies_of(numbers, limit) -> Copies:
    copies = Copies(limit)
    for number in numbers:
        copies.add(hash_of(str(number).encode()))
    return copies


NUMBERS = st.lists(st.integers(0, 40), max_size=80)


@settings(max_examples=100, deadline=None)
@given(first=NUMBERS, second=NUMBERS, limit=st.sampled_from([4, 16, 100]))
def test_copies_of_parts_add_up_to_those_of_all(first, second, limit):
    merged, whole = copies_of(first, limit), copies_of(first + second, limit)
    merged.merge(copies_of(second, limit))
    assert merged.to_json() == whole.to_json()
    if whole.exact:
        assert whole.copies == len(first + second) - len({*first, *second})
        assert whole.most == max(Counter(first + second).values(), default=0)


def test_copies_of_more_values_than_are_held_are_estimated():
    numbers = [number // 2 if number % 3 else number for number in range(60_000)]
    copies = copies_of(numbers, limit=4096)
    assert not copies.exact
    assert copies.share == pytest.approx(1 - len(set(numbers)) / len(numbers), abs=0.02)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=90), indexed=st.booleans(), seed=st.integers(0, 9))
def test_every_entry_comes_once_and_the_first_are_spread_over_the_shards(sizes, indexed, seed):
    source = MemorySource(sizes, indexed)
    places = [(entry.shard, entry.place) for entry in spread_entries(source, seed)]
    assert sorted(places) == [(shard, place) for shard, size in enumerate(sizes) for place in range(size)]
    assert places == [(entry.shard, entry.place) for entry in spread_entries(source, seed)]
    holding = sum(size > 0 for size in sizes)
    assert len({shard for shard, _ in places[: min(holding, 64)]}) == min(holding, 64)


@pytest.mark.parametrize(
    ("text", "language"),
    [("A brown dog is lying on the grass.", "en"), ("Ein brauner Hund liegt im Gras.", "de"), ("12 34", UNCLEAR)],
)
def test_languages_are_told_by_their_codes(text, language):
    identify = language_identifier()
    assert identify is not None and identify(text) == language


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


SAMPLES = {
    "a": ("words", png(8, 4)),
    "b": ("some words", png(4, 4)),
    "c": ("words", png(4, 4)),
    "d": ("x" * 100, png(4, 4)),
    "e": ("bad image", b"no image at all"),
    "f": ("  ", png(4, 4)),
}
"""Key -> caption and image. A record takes one token to start, three for its image and one a letter; a row has 64."""


@pytest.fixture
def source(tmp_path):
    members = [member for key, (caption, image) in SAMPLES.items() for member in pair(key, caption, image)]
    (tmp_path / "made.tar").write_bytes(tar_bytes(members))
    return WebDatasetConfig(shards=str(tmp_path / "made.tar")).open(Storage())


def reader(**changes) -> Reader:
    transform = ImageTransformConfig(size=(4, 4))
    return Reader(
        stream=stream_config(**changes),
        render=render,
        image_tokens=IMAGE_TOKENS,
        size_of=lambda data: stated_size(data, transform),
        storage=Storage(),
        language=lambda text: f"of {len(text)} letters",
    )


def statistics_of(source, **changes) -> SourceStatistics:
    found = SourceStatistics()
    for entry in spread_entries(source, seed=0):
        reader(**changes).count(source, entry, found)
    return found


def test_every_number_of_a_source_is_what_it_holds(source):
    found = statistics_of(source)
    told = found.to_json()
    assert (told["records"], told["good"]) == (6, 3)
    assert told["skipped"] == {"too_long": 1, "image_unsupported": 1, "empty_caption": 1}
    assert told["skipped_share"] == 0.5 and told["parts_left_out"] == {}
    assert found.bad_image_share == 0.25

    assert told["tokens"]["total"] == 9 + 14 + 9 + 104 + 13
    assert (told["tokens"]["least"], told["tokens"]["most"], told["tokens"]["quantiles"]["0.5"]) == (9, 104, 13)
    assert told["supervised_tokens"]["total"] == 5 + 10 + 5 + 100 + 9
    assert told["supervised_share"] == pytest.approx(129 / 149)
    assert told["turns"]["buckets"] == [[2, 5]] and told["images"]["buckets"] == [[1, 5]]
    assert told["image_slots"]["total"] == 5

    # The bad image has bytes, but no size.
    assert told["image_width"]["buckets"] == [[4, 3], [8, 1]] and told["image_height"]["buckets"] == [[4, 4]]
    assert told["aspect_ratio"]["most"] == 2 and told["aspect_ratio"]["quantiles"]["0.5"] == 1
    assert told["image_bytes"]["total"] == sum(len(SAMPLES[key][1]) for key in "abcde")
    assert told["image_copies"] == {"seen": 5, "copies": 2, "share": 0.4, "most": 3, "exact": True}
    assert told["text_copies"] == {"seen": 5, "copies": 1, "share": pytest.approx(0.2), "most": 2, "exact": True}
    assert told["languages"] == {"of 5 letters": 2, "of 10 letters": 1, "of 100 letters": 1, "of 9 letters": 1}


def test_text_that_is_cut_is_counted_as_good(source):
    found = statistics_of(source, overlong="cut")
    assert found.parts_left_out == {CUT: 1} and found.good == 4 and found.measures["tokens"].most == 104


class FilteredImages(MemorySource):
    """Records of a picture in memory and text, beside which a filter has refused two images."""

    def read(self, entry: Entry) -> Record:
        parts = (ImagePart(ImageBytes(png(4, 4))), TextPart("words"))
        refused = Skip("filtered_similarity", "made", "too unlike its text")
        return Record("made", (Turn("assistant", parts, learn=True),), left_out=(refused, refused))


def test_what_is_left_out_of_a_record_is_counted_apart():
    found = statistics_of(FilteredImages([3], indexed=True))
    assert found.good == 3 and found.parts_left_out == {"filtered_similarity": 6}
    assert found.image_copies.copies == 2 and found.measures["tokens"].total == 3 * 9


def test_sources_add_up(source):
    total, once = statistics_of(source), statistics_of(source)
    total.merge(once)
    assert total.records == 12 and total.skipped == Counter({cause: 2 * n for cause, n in once.skipped.items()})
    assert total.measures["tokens"].total == 298 and total.supervised_share == once.supervised_share
    # Of ten images and ten texts, two and four are new.
    assert total.image_copies.copies == 7 and total.text_copies.copies == 6


def write_captions(folder, name: str, letters: int, count: int) -> None:
    members = [m for number in range(count) for m in pair(f"{number}", "x" * letters, png(4, 4))]
    (folder / f"{name}.tar").write_bytes(tar_bytes(members))


@pytest.fixture
def two_sources(tmp_path):
    """Records of 30 tokens and records of 20."""
    write_captions(tmp_path, "long", letters=26, count=8)
    write_captions(tmp_path, "short", letters=16, count=8)
    return {name: WebDatasetConfig(shards=str(tmp_path / f"{name}.tar")).open(Storage()) for name in ("long", "short")}


def test_every_number_of_rows_is_what_they_hold(two_sources):
    # 30 + 30 of 64 tokens fill a row best that begins with a long record, 20 + 20 + 20 one that begins with a short.
    stream = stream_config(mixture={"long": 2.0}, lanes=8)
    rows = row_statistics(stream, two_sources, render, IMAGE_TOKENS, records=16)
    assert rows.rows == 8 and rows.records.total == 16
    told = rows.to_json()
    assert told["padding_share"] == pytest.approx(4 / 64) and told["image_slot_share"] == pytest.approx(2 / 3)
    assert told["supervised_share"] == pytest.approx(26 / 30)
    assert told["tokens"]["buckets"] == [[60, 8]] and told["records"]["buckets"] == [[2, 8]]
    assert told["sources"] == {
        "long": {"weight": 1, "records": 16, "record_share": 1, "token_share": 1, "image_slot_share": 1}
    }
    assert told["refused"] is None


def test_rows_tell_what_is_drawn_of_each_source(two_sources):
    stream = stream_config(mixture={"long": 3.0, "short": 1.0})
    rows = row_statistics(stream, two_sources, render, IMAGE_TOKENS, records=400)
    drawn = rows.to_json()["sources"]
    assert [each["weight"] for each in drawn.values()] == [0.75, 0.25]
    # What waits for a row when it is enough was drawn too.
    assert drawn["long"]["record_share"] == pytest.approx(0.75, abs=0.02)
    long, short = rows.sources["long"], rows.sources["short"]
    assert (long.tokens, short.tokens) == (30 * long.records, 20 * short.records)
    assert drawn["long"]["token_share"] == long.tokens / (long.tokens + short.tokens)
    assert drawn["long"]["image_slot_share"] == drawn["long"]["record_share"]


def test_what_would_stop_a_run_is_told_after_all_was_counted(source):
    stream = stream_config(skip_quota=0.001, unfit_quota=1.0)
    rows = row_statistics(stream, {"pairs": source}, render, IMAGE_TOKENS, 600, {"pairs": 0.25})
    assert rows.rows > 100 and "more than skip_quota = 0.001 allows" in rows.refused
    assert f"image_bad {round(rows.records.total / 4)}" in rows.refused


def test_plots_have_every_measure_and_are_the_same_for_the_same_data(source, two_sources):
    stream = stream_config(mixture={"long": 1.0})
    rows = row_statistics(stream, two_sources, render, IMAGE_TOKENS, records=16)
    drawn = [plots("made", {"a": statistics_of(source), "b": SourceStatistics()}, rows) for _ in range(2)]
    assert drawn[0] == drawn[1]
    for label in ("tokens a record", "image width / height", "too_long", "tokens a row of 64"):
        assert label in drawn[0], label
