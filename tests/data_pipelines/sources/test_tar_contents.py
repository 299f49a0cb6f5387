import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources import tar_contents
from data_pipelines.sources.tar_contents import contents
from data_pipelines.sources.tar_headers import Break
from data_pipelines.sources.tar_index import TarIndex
from data_pipelines.sources.tar_samples import samples
from data_pipelines.storage import Storage
from tests.support.random_tars import tars
from tests.support.tiny_stream import tar_bytes

STORAGE = Storage()
MEMBERS = [
    (f"{number:03d}.{ending}", bytes([number]) * (size * number))
    for number in range(30)
    for ending, size in (("jpg", 337), ("txt", 1), ("json", 30))
]


def index_of(path):
    return TarIndex.of(samples(STORAGE.reader(path), STORAGE.size(path)))


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(MEMBERS))
    return str(path)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 511, 512, 513, 1024, 5000, 1 << 20])
def test_all_bytes_of_all_members_come_whatever_a_block_cuts_through(shard, block_bytes, indexed):
    found = list(contents(shard, STORAGE, index_of(shard) if indexed else None, block_bytes))
    assert [
        (f"{sample.key}.{ending}", bytes(data)) for sample, members in found for ending, data in members.items()
    ] == MEMBERS


@settings(max_examples=100, deadline=None)
@given(data=tars(), block_bytes=st.integers(1, 5000))
def test_of_any_tar_come_the_samples_of_its_walk_with_the_bytes_at_their_places(tmp_path_factory, data, block_bytes):
    path = tmp_path_factory.mktemp("tars") / "a.tar"
    path.write_bytes(data)
    walk = list(samples(STORAGE.reader(str(path)), len(data)))
    for index in (None, TarIndex.of(walk)):
        found = list(contents(str(path), Storage(), index, block_bytes))
        assert [each if isinstance(each, Break) else each[0] for each in found] == walk
        for each in found:
            if not isinstance(each, Break):
                sample, members = each
                places = {} if sample.refusal else sample.members
                assert members == {name: data[at : at + size] for name, (at, size) in places.items()}
    path.unlink()


def test_bytes_may_be_kept(shard):
    kept = [members["jpg"] for _, members in contents(shard, STORAGE, block_bytes=2000)]
    assert [bytes(data) for data in kept] == [data for name, data in MEMBERS if name.endswith("jpg")]
    assert all(data.readonly for data in kept)


def test_what_may_not_be_read_has_no_bytes(tmp_path):
    path = tmp_path / "a.tar"
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path.write_bytes(link.tobuf() + tar_bytes([("../c.jpg", b"x"), ("d.pkl", b"x"), ("e.jpg", b"good")]))
    causes = [(sample.refusal and sample.refusal[0], list(members)) for sample, members in contents(str(path), STORAGE)]
    assert causes == [("not_a_file", []), ("path_escapes", []), ("pickled_member", []), (None, ["jpg"])]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_sample_that_does_not_fit_into_memory_is_refused_and_never_read(shard, indexed, monkeypatch):
    monkeypatch.setattr(tar_contents, "_SAMPLE_LIMIT", 10_000)
    index = index_of(shard) if indexed else None
    lengths = []
    storage = Storage()
    read = storage.reader(shard)
    monkeypatch.setattr(storage, "reader", lambda path: lambda at, size: lengths.append(size) or read(at, size))
    found = list(contents(shard, storage, index, block_bytes=4000))
    assert [sample.key for sample, _ in found] == [f"{number:03d}" for number in range(30)]
    for sample, members in found:
        size = sample.following - sample.place
        assert sample.refusal == (("sample_too_large", f"{size} bytes") if size > 10_000 else None)
        assert bool(members) == (size <= 10_000)
    assert max(lengths) <= 10_000 + 512


def test_a_tar_cut_before_it_is_read_says_where(shard):
    os.truncate(shard, 200_000)
    *_, last = contents(shard, STORAGE)
    assert isinstance(last, Break) and last.cause == "truncated"


@pytest.mark.parametrize("indexed", [False, True])
def test_a_tar_cut_while_it_is_read_is_an_error_and_no_end(shard, indexed):
    found = contents(shard, Storage(), index_of(shard) if indexed else None, block_bytes=2000)
    next(found)
    os.truncate(shard, 20_000)
    with pytest.raises(OSError, match=f"{shard} ends at byte 20000 where it reached to"):
        list(found)


def test_what_is_written_behind_a_tar_while_it_is_read_is_not_taken_for_a_part_of_it(shard):
    found = contents(shard, Storage(), block_bytes=2000)
    next(found)
    with open(shard, "ab") as file:
        file.write(tar_bytes(MEMBERS))
    assert len(list(found)) == 29


def test_the_padding_of_the_last_member_may_be_cut_off(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([("a.jpg", b"1" * 700)])[: 512 + 700])
    (sample, members), last = contents(str(path), STORAGE)
    assert members["jpg"] == b"1" * 700 and isinstance(last, Break)
    assert sample.at_break


def test_other_people_read_the_same(shard):
    webdataset = pytest.importorskip("webdataset")
    theirs = webdataset.WebDataset([shard], shardshuffle=False, empty_check=False)
    found = list(contents(shard, STORAGE))
    for sample, (ours, members) in zip(theirs, found, strict=True):
        assert sample["__key__"] == ours.key
        assert {name: sample[name] for name in members} == members


def test_an_empty_member_has_empty_bytes(tmp_path):
    path = tmp_path / "a.tar"
    buffer = io.BytesIO(tar_bytes([("a.jpg", b""), ("a.txt", b""), ("b.jpg", b"x")]))
    path.write_bytes(buffer.getvalue())
    (_, first), (_, second) = contents(str(path), STORAGE)
    assert first == {"jpg": b"", "txt": b""} and second == {"jpg": b"x"}
