"""Rows of parquet files become conversations; what is bad is a skip with a cause and a key."""

import sys

import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines.quota import Skip
from data_pipelines.record import ImageBytes, ImagePart, TextPart
from data_pipelines.sources.choice import source_of_path
from data_pipelines.sources.parquet import ParquetConfig, record_of
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage


def row(number, **other):
    image = {"bytes": f"image {number}".encode(), "path": None}
    texts = [{"user": f"{number}?", "assistant": f"{number}!"}, {"user": "Sure?", "assistant": "Yes."}]
    return {"images": [image], "texts": texts, "relevance_min": number % 5} | other


@pytest.fixture
def written(tmp_path):
    """Two files of ten rows in groups of three."""
    for file in range(2):
        table = pyarrow.Table.from_pylist([row(10 * file + number) for number in range(10)])
        pyarrow.parquet.write_table(table, tmp_path / f"{file}.parquet", row_group_size=3)
    return tmp_path


def open_source(folder, **config):
    return ParquetConfig(files=str(folder / "*.parquet"), **config).open(Storage())


def test_a_row_is_a_conversation_with_its_images_first(written):
    found = list(records(open_source(written)))
    assert [record.key.rpartition("/")[2] for record in found] == [
        f"{f}.parquet:{n}" for f in (0, 1) for n in range(10)
    ]
    asked, answered, *_ = found[13].turns
    assert asked.parts == (ImagePart(ImageBytes(b"image 13")), TextPart("13?")) and not asked.learn
    assert answered.parts == (TextPart("13!"),) and answered.learn
    assert Storage().read_image(asked.parts[0].source) == b"image 13"


def test_rows_are_found_again_at_their_places_whatever_is_in_memory(written):
    source = open_source(written, groups_in_memory=1)
    entries = [entry for shard in (0, 1) for entry in source.walk(shard)]
    assert [source.read(source.locate(entry.shard, entry.place)) for entry in reversed(entries)] == [
        source.read(entry) for entry in reversed(entries)
    ]
    assert list(source.walk(0, 7)) == entries[7:10]


def test_rows_that_do_not_pass_a_filter_are_counted_by_its_column(written):
    found = list(records(open_source(written, filters={"relevance_min": {"at_least": 3}})))
    left_out = [skip for skip in found if isinstance(skip, Skip)]
    assert len(found) == 20 and {skip.cause for skip in left_out} == {"filtered_relevance_min"} and len(left_out) == 12


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (row(1, images=[{"bytes": None, "path": "a.png"}]), "missing_image"),
        (row(1, images=[{"bytes": b"", "path": None}]), "empty_image"),
        (row(1, texts=None), "not_a_conversation"),
        (row(1, texts=[]), "not_a_conversation"),
        (row(1, texts=[{"user": "What?", "assistant": None}]), "not_text"),
        (row(1, texts=[{"user": "What?", "assistant": ""}]), "empty_turn"),
        (row(1, texts=[{"user": "<image> or <image>?", "assistant": "That."}]), "image_count"),
    ],
)
def test_a_bad_row_is_skipped_with_a_cause_and_a_key(value, cause):
    skip = record_of(value, ParquetConfig(files="x"), "file:1")
    assert isinstance(skip, Skip) and (skip.cause, skip.key) == (cause, "file:1")


@pytest.mark.parametrize("images", [[], None])
def test_text_alone_is_a_conversation_too(images):
    record = record_of(row(1, images=images), ParquetConfig(files="x"), "k")
    assert record.turns[0].parts == (TextPart("1?"),)


def test_a_file_that_is_cut_off_is_one_skip_and_a_damaged_group_one_for_each_row(written):
    whole = (written / "0.parquet").read_bytes()
    (written / "1.parquet").write_bytes(whole[: len(whole) // 2])
    (written / "0.parquet").write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    found = list(records(open_source(written)))
    causes = [skip.cause for skip in found if isinstance(skip, Skip)]
    assert causes[-1] == "bad_parquet" and causes.count("bad_parquet") == 1
    assert len(found) == 11 and set(causes[:-1]) <= {"bad_row_group"} and len(causes) > 1


def test_what_cannot_be_read_at_all_is_refused_before_anything_starts(written, monkeypatch):
    with pytest.raises(ValueError, match="there is no column pictures; columns: images, texts, relevance_min"):
        open_source(written, images="pictures")
    for file in written.glob("*.parquet"):
        file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="none of the 2 files"):
        open_source(written)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'mllm_jax\[parquet\]'"):
        open_source(written)


def test_a_path_alone_names_it(written):
    assert len(list(records(source_of_path(str(written / "0.parquet")).open(Storage())))) == 10
