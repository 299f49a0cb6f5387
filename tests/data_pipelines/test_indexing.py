"""`mllm data index` and what runs make of its indexes: the same records in the same order, with less work."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from data_pipelines.indexing import index_shards
from data_pipelines.loader import Loader
from data_pipelines.quota import Skip
from data_pipelines.sources.source import records
from data_pipelines.sources.tar_index_files import IndexUnusableError, index_path, load_index
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from mllm_jax.cli import main
from tests.support.processes import ROOT
from tests.support.random_tars import tars
from tests.support.tiny_stream import PREPARATION, stream_config, write_pairs


class CountingStorage(Storage):
    """Notes what is read of tars."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def read(self, path, offset, length):
        self.reads.append((offset, length))
        return super().read(path, offset, length)


@settings(max_examples=60, deadline=None)
@given(data=tars())
def test_a_source_gives_the_same_entries_and_records_with_an_index_and_without(data):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.tar").write_bytes(data)
        list(index_shards([f"{folder}/a.tar"]))
        with_index, without = (
            WebDatasetConfig(shards=f"{folder}/a.tar", index=use).open(Storage()) for use in ("require", "never")
        )
        assert list(records(with_index)) == list(records(without))
        walked = list(without.walk(0))
        assert [entry[:3] for entry in with_index.walk(0)] == [entry[:3] for entry in walked]
        for number, entry in enumerate(walked):
            located = with_index.locate(0, entry.place)
            assert located[:3] == entry[:3] and with_index.read(located) == without.read(entry)
            # A run goes on with an index from where it stopped without one, and the other way round.
            for source in (with_index, without):
                assert [e[:3] for e in source.walk(0, entry.following)] == [e[:3] for e in walked[number + 1 :]]


def batches(config, position=None, steps=4):
    with Loader(stream_config(), {"pairs": config}, PREPARATION, rows=2, position=position) as loader:
        loaded = [next(loader) for _ in range(steps)]
    return [each.report.keys for each in loaded], loaded[-1].position.to_json()


def test_a_run_goes_on_with_an_index_that_was_made_while_it_stood_still(tmp_path):
    config = write_pairs(tmp_path, [30, 50])
    whole, _ = batches(config, steps=8)
    begun, position = batches(config)
    assert main(["data", "index", str(config.shards)]) == 0
    gone_on, position = batches(config.model_copy(update={"index": "require"}), position, steps=2)
    for file in tmp_path.glob("*.index"):
        file.unlink()
    ended, _ = batches(config, position, steps=2)
    assert begun + gone_on + ended == whole


def test_with_an_index_no_header_is_read_again(tmp_path):
    config = write_pairs(tmp_path, [40])
    list(index_shards([str(config.shards)]))
    storage = CountingStorage()
    source = config.open(storage)
    entries = list(source.walk(0))
    for entry in entries[::7]:
        source.locate(0, entry.place)
    assert len(entries) == 40 and not storage.reads
    source.read(entries[3])
    assert len(storage.reads) == 1


def test_indexes_are_made_once_and_again_where_they_are_stale_or_damaged(tmp_path, capsys):
    config = write_pairs(tmp_path, [3, 4, 5])
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    assert main(["data", "index", *shards]) == 0
    assert "3 shards with 12 samples: 3 indexed, 0 were already" in capsys.readouterr().out
    assert main(["data", "index", str(config.shards), "--threads", "3"]) == 0
    assert "3 shards with 12 samples: 0 indexed, 3 were already" in capsys.readouterr().out
    os.utime(shards[0], (1, 1))
    Path(f"{shards[1]}.index").write_bytes(Path(f"{shards[1]}.index").read_bytes()[:-1])
    assert main(["data", "index", *shards]) == 0
    told = capsys.readouterr().out
    assert "pairs-000.tar.index is stale: the shard changed since (modified was" in told
    assert "pairs-001.tar.index is damaged: its checksum is wrong" in told
    assert "2 indexed, 1 were already" in told
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_an_index_that_is_wrong_is_told_once_and_the_shards_are_walked(tmp_path, caplog):
    config = write_pairs(tmp_path, [3, 4])
    list(index_shards([str(config.shards)]))
    for shard in tmp_path.glob("*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"pairs", b"peers"))
        os.utime(shard, (1, 1))
    with caplog.at_level(logging.WARNING, "data_pipelines"):
        found = list(records(config.open(Storage())))
    assert len(found) == 7 and not any(isinstance(record, Skip) for record in found)
    assert caplog.text.count("is stale") == 1 and "mllm data index" in caplog.text
    with pytest.raises(IndexUnusableError, match=r"2 of 2 shards have no index that can be used.*stale"):
        config.model_copy(update={"index": "require"}).open(Storage())


def test_a_run_that_requires_indexes_does_not_start_without_them(tmp_path):
    config = write_pairs(tmp_path, [3, 4]).model_copy(update={"index": "require"})
    list(index_shards([str(tmp_path / "pairs-000.tar")]))
    with pytest.raises(ValueError, match=r"1 of 2 shards.*no index .*pairs-001\.tar\.index.*mllm data index"):
        config.open(Storage())


def test_the_break_of_a_tar_is_told_as_the_walk_tells_it(tmp_path, capsys):
    write_pairs(tmp_path, [3])
    path = tmp_path / "pairs-000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    *_, lost = records(WebDatasetConfig(shards=str(path)).open(Storage()))
    assert isinstance(lost, Skip)
    assert main(["data", "index", str(path)]) == 1
    assert f"{lost.key}: {lost.cause}: {lost.detail}; what follows is lost" in capsys.readouterr().out


@contextlib.contextmanager
def as_anybody():
    """Without the rights of root, whom no folder keeps from writing."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_shards_where_nobody_may_write_are_indexed_in_a_cache(capsys):
    # Anybody must be able to enter it, unlike pytest's folders.
    folder = Path(tempfile.mkdtemp())
    try:
        config = write_pairs(folder / "data", [5])
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0o777)
        folder.chmod(0o755)
        (folder / "data").chmod(0o555)
        with as_anybody():
            assert main(["data", "index", str(config.shards)]) == 1
            assert "pairs-000.tar.index cannot be written (Permission denied). Give a folder" in capsys.readouterr().err
            assert main(["data", "index", str(config.shards), "--cache", str(folder / "cache")]) == 0
            cached = config.model_copy(update={"index": "require", "index_cache": str(folder / "cache")})
            assert len(list(records(cached.open(Storage())))) == 5
        assert os.listdir(folder / "data") == ["pairs-000.tar"]
    finally:
        (folder / "data").chmod(0o755)
        shutil.rmtree(folder)


def test_remote_shards_are_indexed_in_a_cache_and_told_apart_by_what_their_store_says(tmp_path):
    import fsspec

    write_pairs(tmp_path, [5, 6])
    remote = fsspec.filesystem("memory")
    for shard in tmp_path.glob("*.tar"):
        remote.pipe_file(f"/index-test/{shard.name}", shard.read_bytes())
    pattern, cache = "memory://index-test/pairs-*.tar", str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"is remote.*--cache"):
        index_shards([pattern])
    assert [report.samples for report in index_shards([pattern], cache)] == [5, 6]
    config = WebDatasetConfig(shards=pattern, index="require", index_cache=cache)
    source = config.open(Storage())
    assert list(records(source)) == list(records(WebDatasetConfig(shards=pattern).open(Storage())))
    # Written again, of the same size.
    remote.pipe_file("/index-test/pairs-000.tar", (tmp_path / "pairs-000.tar").read_bytes())
    assert [report.made for report in index_shards([pattern], cache)] == [True, False]


def test_two_processes_index_the_same_shards_at_once(tmp_path):
    config = write_pairs(tmp_path, [50] * 12)
    command = [sys.executable, "-c", "import sys; from mllm_jax.cli import main; sys.exit(main())"]
    started = [
        subprocess.Popen([*command, "data", "index", str(config.shards)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert all("12 shards with 600 samples" in each for each in told)
    for shard in tmp_path.glob("*.tar"):
        assert len(load_index(str(shard), None, Storage())) == 50
        assert Path(index_path(str(shard), None)).exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
