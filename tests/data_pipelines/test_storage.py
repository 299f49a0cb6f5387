import re
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.loader import Loader
from data_pipelines.record import ByteRange, ImageBytes
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage, StorageConfig
from data_pipelines.stores.errors import ChangedObjectError, UnreadableError
from tests.support.range_server import range_server
from tests.support.tiny_stream import PREPARATION, stream_config, write_pairs

BLOCK = 4096
SMALL = {"block_bytes": BLOCK, "memory_bytes": 16 * BLOCK, "cache_bytes": 2**20, "first_wait_seconds": 0.001}
CONTENTS = bytes(number * number % 251 for number in range(20 * BLOCK + 17))
FAULTS = st.sampled_from([503, 429, 408, "reset", "short", "shifted", None])


@pytest.fixture(scope="module")
def server():
    with range_server() as server:
        yield server


@pytest.fixture
def served(server):
    """A file of the server and its address; what was asked for and the faults of other tests are forgotten."""
    server.files, server.versions, server.faults, server.requests = {"a.tar": CONTENTS, "empty": b""}, {}, [], []
    return server.address("a.tar")


@pytest.fixture
def storage():
    """Makes storages, and closes them."""
    opened = []

    def make(**config):
        opened.append(Storage(StorageConfig(**(SMALL | config))))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_ranges_of_a_local_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    store = Storage()
    assert store.size(str(path)) == store.size(f"file://{path}") == 10
    assert store.read_range(ByteRange(str(path), 2, 3)) == b"234"
    assert store.read_range(ByteRange(str(path))) == b"0123456789"
    assert store.read(str(path), 8, 100) == b"89"
    with pytest.raises(OSError, match="changed while it was being read"):
        store.read_range(ByteRange(str(path), 8, 100))


def test_a_missing_file_is_not_tried_again(tmp_path):
    store = Storage()
    with pytest.raises(FileNotFoundError, match=r"could not read .*none: No such file"):
        store.size(str(tmp_path / "none"))
    assert store.take_failures() == 0


def test_more_files_than_may_stay_open(tmp_path):
    store = Storage(open_files=2)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    for number in [*range(5), *range(5)]:
        assert store.read(str(tmp_path / str(number)), 0, 9) == b"%d" % number


def test_an_image_is_a_range_of_a_file_or_bytes_at_hand_and_its_beginning_can_be_read_alone(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    sources = ByteRange(str(tmp_path / "file"), 2, 6), ByteRange(str(tmp_path / "file"), 2), ImageBytes(b"234567")
    assert [Storage().read_image(source) for source in sources] == [b"234567", b"23456789", b"234567"]
    assert {Storage().read_image(source, 3) for source in sources} == {b"234"}
    assert Storage().read_image(sources[0], 100) == b"234567"


def test_ranges_of_any_filesystem_that_fsspec_knows(storage):
    with fsspec.open("memory://folder/file", "wb") as file:
        file.write(b"0123456789")
    store = storage()
    assert store.size("memory://folder/file") == 10
    assert store.read("memory://folder/file", 8, 100) == b"89"
    assert store.read("memory://folder/file", 10, 5) == b""
    assert store.read_range(ByteRange("memory://folder/file", 2, 3)) == b"234"
    with pytest.raises(FileNotFoundError, match="could not read memory://folder/none"):
        store.size("memory://folder/none")


def test_an_object_of_any_filesystem_that_changes_is_an_error(storage):
    def write(contents):
        with fsspec.open("memory://changing", "wb") as file:
            file.write(contents)

    write(CONTENTS)
    store = storage(read_ahead=0)
    assert store.read("memory://changing", 0, 9) == CONTENTS[:9]
    write(CONTENTS[::-1])
    with pytest.raises(ChangedObjectError, match=r"memory://changing \(bytes 40960 to 45055\): it changed while"):
        store.read("memory://changing", 10 * BLOCK, 9)


@settings(max_examples=25, deadline=None)
@given(
    reads=st.lists(st.tuples(st.integers(0, len(CONTENTS)), st.integers(0, 5 * BLOCK), st.booleans()), max_size=8),
    faults=st.lists(FAULTS, max_size=6),
    cached=st.booleans(),
    read_ahead=st.integers(0, 4),
)
def test_a_store_that_stumbles_gives_the_right_bytes(server, tmp_path_factory, reads, faults, cached, read_ahead):
    server.files, server.versions, server.faults = {"a.tar": CONTENTS}, {}, list(faults)
    path = server.address("a.tar")
    cache = str(tmp_path_factory.mktemp("cache")) if cached else None
    store = Storage(StorageConfig(**SMALL, cache=cache, read_ahead=read_ahead))
    for offset, length, exact in reads:
        expected = CONTENTS[offset : offset + length]
        if exact:
            assert store.read_range(ByteRange(path, offset, len(expected))) == expected
        else:
            assert store.read(path, offset, length) == expected
    failures = store.take_failures()
    store.close()
    assert reads == [] or failures <= len(faults)
    server.faults = []


def test_a_walk_reads_blocks_ahead_and_each_of_them_once(server, served, storage):
    store = storage(memory_bytes=64 * BLOCK)
    assert b"".join(store.read(served, at, 500) for at in range(0, len(CONTENTS), 500)) == CONTENTS
    assert set(server.asked().values()) == {1} and len(server.asked()) == 21
    assert {end - start for _, start, end in server.asked()} == {BLOCK, 17}


def test_without_a_cache_an_image_is_the_bytes_that_are_asked_for(server, served, storage, caplog):
    store = storage(read_ahead=0)
    store.read(served, 0, 9)
    assert store.read_range(ByteRange(served, 100, 50)) == CONTENTS[100:150]
    assert store.read_range(ByteRange(served, 5000, 50)) == CONTENTS[5000:5050]
    assert sorted(server.asked()) == [("a.tar", 0, BLOCK), ("a.tar", 5000, 5050)]
    assert caplog.text.count("every image of") == 1


@pytest.mark.parametrize("cached", [False, True])
def test_images_that_are_expected_are_asked_for_once_and_at_the_same_time(server, served, storage, tmp_path, cached):
    store = storage(read_ahead=0, cache=str(tmp_path) if cached else None)
    store.size(served)
    places = [ByteRange(served, at, 50) for at in range(0, 10 * BLOCK, BLOCK)]
    server.faults, server.slow_seconds = ["slow"] * 10, 0.2
    store.expect([*places, ImageBytes(b"here"), ByteRange(str(tmp_path / "local"), 0, 9)])
    while server.faults:
        time.sleep(0.01)
    assert [store.read_image(place) for place in places] == [CONTENTS[at.offset : at.offset + 50] for at in places]
    assert set(server.asked().values()) == {1} and len(server.asked()) == 10


def test_an_expected_image_that_fails_is_an_error_for_whoever_reads_it(server, served, storage):
    store = storage(attempts=1)
    store.size(served)
    server.faults = [503]
    store.expect([ByteRange(served, 10, 5)])
    with pytest.raises(OSError, match=r"a\.tar \(bytes 10 to 14\) in 1 attempts"):
        store.read_image(ByteRange(served, 10, 5))
    assert store.read_image(ByteRange(served, 10, 5)) == CONTENTS[10:15]


def test_whoever_waits_for_a_request_that_is_not_made_any_more_is_let_go(server, served, storage):
    """One request at a time, the second of which never has its turn."""
    store = storage(requests=1, read_ahead=0)
    store.size(served)
    server.faults, server.slow_seconds = ["slow"], 0.3
    with ThreadPoolExecutor(2) as readers:
        first = readers.submit(store.read_image, ByteRange(served, 0, 50))
        while server.faults:
            time.sleep(0.01)
        second = readers.submit(store.read_image, ByteRange(served, 5 * BLOCK, 50))
        time.sleep(0.05)
        store.close()
        assert first.result(10) == CONTENTS[:50]
        with pytest.raises(UnreadableError, match="closed before it was read"):
            second.result(10)


def test_what_is_read_ahead_stays_within_the_memory(server, served, storage, caplog):
    names = [f"{number}.tar" for number in range(6)]
    server.files |= dict.fromkeys(names, CONTENTS[: 6 * BLOCK])
    store = storage(memory_bytes=5 * BLOCK)
    for at in range(0, 6 * BLOCK, 2000):
        for name in names:
            assert store.read(server.address(name), at, 100) == CONTENTS[at : at + 100]
            assert store._remote._memory.bytes <= 5 * BLOCK
    assert caplog.text.count("data.storage.memory_bytes is too little") == 1


def test_a_read_that_keeps_failing_is_an_error_that_names_everything(server, served, storage):
    store = storage(attempts=3)
    store.size(served)
    server.faults = [503] * 3
    expected = r"could not read http://\S+/a.tar \(bytes 10 to 14\) in 3 attempts and \S+ s; .* 503 Service Unavailable"
    with pytest.raises(OSError, match=expected):
        store.read_range(ByteRange(served, 10, 5))
    assert store.take_failures() == 2


@pytest.mark.parametrize(
    ("status", "error"), [(404, FileNotFoundError), (403, PermissionError), (400, UnreadableError)]
)
def test_what_cannot_succeed_is_not_tried_again(server, served, storage, status, error):
    server.faults = [status]
    store = storage()
    with pytest.raises(error, match=f"could not read {re.escape(served)}: the server answers {status}"):
        store.size(served)
    assert store.take_failures() == 0


def test_a_server_without_ranges_is_refused(server, served, storage):
    server.faults = ["whole"]
    with pytest.raises(UnreadableError, match="it must serve ranges"):
        storage().size(served)


def test_a_request_without_an_answer_is_made_again(server, served, storage):
    store = storage(request_seconds=0.2, slow_seconds=0.05)
    store.size(served)
    server.faults, server.slow_seconds = ["slow"], 1.0
    assert store.read_range(ByteRange(served, 5, 5)) == CONTENTS[5:10]
    assert store.take_failures() == 1


def test_a_slow_store_is_told_of(server, served, storage, caplog):
    store = storage(slow_seconds=0.1)
    store.size(served)
    server.faults, server.slow_seconds = ["slow"], 0.5
    assert store.read_range(ByteRange(served, 5, 5)) == CONTENTS[5:10]
    assert f"the store is slow: waiting for {served} (bytes 5 to 9)" in caplog.text


@pytest.mark.parametrize("change", ["version", "size", "reopened"])
def test_a_file_that_changes_on_the_server_is_an_error(server, served, storage, change):
    store = storage(read_ahead=0)
    assert store.read(served, 0, 9) == CONTENTS[:9]
    if change == "size":
        server.files["a.tar"] += b"more"
    else:
        server.versions["a.tar"] = "2"
    if change == "reopened":
        store._remote._object.cache_clear()
    with pytest.raises(ChangedObjectError, match=r"could not read .*a\.tar.*: it changed while the run read it"):
        store.read(served, 10 * BLOCK, 9)


def test_an_empty_file_of_a_server(server, served, storage):
    store = storage()
    assert store.size(server.address("empty")) == 0 and store.read(server.address("empty"), 0, 9) == b""


def test_what_is_not_installed_is_named(monkeypatch):
    def missing(path, **_):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(OSError, match=r"gs://b/a.tar is not installed: pip install 'mllm_jax\[gs\]'"):
        Storage().size("gs://b/a.tar")


def test_a_cache_that_holds_too_few_blocks_is_refused():
    with pytest.raises(ValidationError, match="cache_bytes is 1000, less than 16 blocks take"):
        StorageConfig(cache_bytes=1000)


def batches(shards, count=12, storage=None):
    source = WebDatasetConfig(shards=shards)
    with Loader(stream_config(), {"pairs": source}, PREPARATION, 4, storage=storage) as loader:
        return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("cached", [False, True])
def test_batches_from_a_web_server_are_those_from_local_files(server, served, storage, tmp_path, cached):
    write_pairs(tmp_path, (30, 5, 17))
    server.files |= {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    server.faults = [None, 503, None, "short", None, None, "reset"] * 3
    store = storage(cache=str(tmp_path / "cache") if cached else None)
    remote = batches(server.address("pairs-{000..002}.tar"), storage=store)
    for one, two in zip(batches(str(tmp_path / "pairs-*.tar")), remote, strict=True):
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(one.batch, two.batch, strict=True))
        assert [key.rpartition("/")[2] for key in one.report.keys] == [
            key.rpartition("/")[2] for key in two.report.keys
        ]
    assert sum(loaded.report.failed_reads for loaded in remote) > 0


def test_a_shard_that_changes_under_a_run_stops_it(server, served, storage, tmp_path):
    write_pairs(tmp_path, (400,))
    server.files["a.tar"] = (tmp_path / "pairs-000.tar").read_bytes()
    with Loader(
        stream_config(), {"pairs": WebDatasetConfig(shards=served)}, PREPARATION, 4, storage=storage(read_ahead=0)
    ) as loader:
        next(loader)
        server.versions["a.tar"] = "2"
        with pytest.raises(ChangedObjectError, match=r"a\.tar"):
            for _ in range(100):
                next(loader)
