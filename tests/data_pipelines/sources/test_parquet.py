"""Rows of parquet files become conversations; what is bad is a skip with a cause and a key."""

import sys

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.quota import Skip
from data_pipelines.record import ImageBytes, ImagePart, Record, TextPart
from data_pipelines.sources import row_groups
from data_pipelines.sources.choice import source_of_path
from data_pipelines.sources.parquet import ParquetConfig, record_of
from data_pipelines.sources.source import records
from data_pipelines.sources.stored_file import StoredFile
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


@pytest.mark.parametrize("memory", [1, 2**20])
def test_rows_are_found_again_at_their_places_whatever_is_in_memory(written, memory):
    source = open_source(written, memory_bytes=memory)
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
        (row(1, images=3), "missing_image"),
        (row(1, texts=None), "not_a_conversation"),
        (row(1, texts=[3]), "not_a_conversation"),
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


@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_are_changed_each_row_is_a_record_or_a_skip(written, changes):
    data = bytearray((written / "0.parquet").read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    (written / "1.parquet").write_bytes(data)
    found = list(records(open_source(written)))
    assert len(found) >= 10 and all(isinstance(each, Record | Skip) for each in found)


def test_groups_are_kept_up_to_a_bound_and_read_once_within_it(written, monkeypatch):
    read, whole_read = [], StoredFile.read
    monkeypatch.setattr(StoredFile, "read", lambda self, size=-1: read.append(size) or whole_read(self, size))
    for memory, again in ((2**20, False), (1, True)):
        source = open_source(written, memory_bytes=memory)
        first, *_, last = source.walk(0)
        for entry in (first, last):
            source.read(entry)
        before = len(read)
        source.read(first)
        assert (len(read) > before) == again


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5), start=st.integers(0, 20))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_walk_and_locate_agree_however_rows_are_grouped(tmp_path, sizes, start):
    schema = pyarrow.Table.from_pylist([row(0)]).schema
    numbers = iter(range(sum(sizes)))
    with pyarrow.parquet.ParquetWriter(tmp_path / "0.parquet", schema) as writer:
        for size in sizes:
            group = [row(next(numbers)) for _ in range(size)]
            writer.write_table(pyarrow.Table.from_pylist(group, schema), row_group_size=max(1, size))
    source = open_source(tmp_path)
    entries = list(source.walk(0))
    assert [entry.place for entry in entries] == list(range(sum(sizes)))
    assert [source.locate(0, entry.place) for entry in entries] == entries
    assert list(source.walk(0, start)) == entries[start:]
    found = [source.read(entry).turns[1].parts[0].text for entry in entries]
    assert found == [f"{number}!" for number in range(sum(sizes))]


def test_a_store_that_fails_is_an_error_and_no_skip(written, monkeypatch):
    source = open_source(written)
    monkeypatch.setattr(Storage, "read_range", lambda self, place: (_ for _ in ()).throw(OSError("the store is down")))
    with pytest.raises(OSError, match="the store is down"):
        source.read(source.locate(0, 0))


def test_text_that_is_no_unicode_is_one_skip(tmp_path):
    texts = pyarrow.array([b"good?", b"bad \xff?"]).view(pyarrow.string())
    pairs = pyarrow.StructArray.from_arrays([texts, pyarrow.array(["Yes.", "No."])], ["user", "assistant"])
    columns = {"images": pyarrow.array([None, None]), "texts": pyarrow.ListArray.from_arrays([0, 1, 2], pairs)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "0.parquet")
    good, bad = records(open_source(tmp_path))
    assert good.turns[0].parts == (TextPart("good?"),)
    assert (bad.cause, bad.key) == ("not_utf8", f"{tmp_path}/0.parquet:1")


def test_a_file_without_a_column_is_a_skip_for_each_of_its_rows(written):
    pyarrow.parquet.write_table(pyarrow.table({"texts": [1, 2], "other": [1, 2]}), written / "1.parquet")
    found = list(records(open_source(written)))
    assert [skip.cause for skip in found[10:]] == ["missing_column"] * 2 and found[11].key.endswith("1.parquet:1")


@pytest.mark.parametrize("image", [b"pixels", {"bytes": b"pixels", "path": "a.png"}])
def test_a_column_of_one_image_is_read_too(tmp_path, image):
    table = pyarrow.Table.from_pylist([{"image": image, "texts": [{"user": "What?", "assistant": "That."}]}])
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    (record,) = records(open_source(tmp_path, images="image"))
    assert record.turns[0].parts == (ImagePart(ImageBytes(b"pixels")), TextPart("What?"))


@pytest.mark.parametrize("path", ["memory", "local"])
def test_a_file_is_read_through_the_storage(written, path):
    address = f"{written}/0.parquet"
    if path == "memory":
        address = "memory://parquet/0.parquet"
        fsspec.filesystem("memory").pipe(address, (written / "0.parquet").read_bytes())
    found = list(records(ParquetConfig(files=address).open(Storage())))
    assert len(found) == 10 and found[9].turns[1].parts == (TextPart("9!"),)


def test_a_group_that_says_it_takes_too_much_memory_is_not_read(written, monkeypatch):
    monkeypatch.setattr(row_groups, "GROUP_LIMIT", 10)
    assert {skip.cause for skip in records(open_source(written))} == {"row_group_too_large"}


def test_what_cannot_be_read_at_all_is_refused_before_anything_starts(written, monkeypatch):
    with pytest.raises(ValueError, match=r"no column image\. Did you mean 'images'\? .*: images, texts, relevance_min"):
        open_source(written, images="image")
    for file in written.glob("*.parquet"):
        file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="none of the 2 files"):
        open_source(written)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'mllm_jax\[parquet\]'"):
        open_source(written)


def test_a_path_alone_names_it(written):
    assert len(list(records(source_of_path(str(written / "0.parquet")).open(Storage())))) == 10
