"""However a loader ends, or the process that has it, or one of its processes: nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage, StorageConfig
from tests.support.described import open_described, write_pictures
from tests.support.processes import ROOT
from tests.support.range_server import range_server


def alive(process_ids):
    return [process for process in process_ids if Path(f"/proc/{process}").exists()]


def test_a_process_that_is_killed_is_named_and_no_other_is_left(described, sources):
    loader = open_described(described["plain"], sources, 3)
    next(loader)
    killed = loader.process_ids[1]
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=rf"process 2 of 3 .*id {killed}, lanes 2, 3\) was ended by SIGKILL"):
        for _ in range(20):
            next(loader)
    assert not alive(loader.process_ids)
    with pytest.raises(StopIteration):
        next(loader)


def test_what_goes_wrong_in_a_process_is_raised_here_with_its_type(described, tmp_path):
    gone = write_pictures(tmp_path, (30, 30))
    loader = open_described(described["plain"], gone, 2)
    next(loader)
    for shard in tmp_path.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:2048])
    with pytest.raises(OSError, match="the file changed while it was being read") as raised:
        for _ in range(200):
            next(loader)
    assert raised.value.__notes__[0].startswith("In process ") and "Traceback" in raised.value.__notes__[0]
    assert not alive(loader.process_ids)


def test_closing_in_the_middle_leaves_no_process_and_no_memory(described, sources):
    before = set(os.listdir("/proc/self/fd"))
    loader = open_described(described["tiled"], sources, 2)
    next(loader)
    shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:batches" in line]
    loader.close()
    loader.close()
    assert shared and "memfd:batches" not in Path("/proc/self/maps").read_text()
    assert not alive(loader.process_ids) and set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("processes", [0, 2])
def test_a_store_that_does_not_answer_is_told_of_and_keeps_nobody_from_closing(described, tmp_path, processes, caplog):
    write_pictures(tmp_path, (30, 20))
    remembers_little = {"block_bytes": 4096, "memory_bytes": 16 * 4112}
    config = StorageConfig(slow_seconds=0.1, first_wait_seconds=0.05, attempts=10**6, **remembers_little)
    with range_server() as server:
        server.files = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
        found = {"pairs": WebDatasetConfig(shards=[server.address(name) for name in sorted(server.files)])}
        loader = open_described(described["plain"], found, processes, storage=Storage(config))
        server.faults = [503] * 10**6
        deadline = time.monotonic() + 20
        while "the store is slow" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        loader.close()
    assert "the store is slow" in caplog.text and "503" in caplog.text
    assert not alive(loader.process_ids)


ENDLESS = """
import json, sys, time
from pathlib import Path
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage, StorageConfig
from tests.support.described import descriptions, open_described
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.tokenizer import tokenizer_from_files
folder = Path(sys.argv[1])
files = {path.name: path.read_bytes() for path in (folder / "tokenizer").iterdir()}
loader = open_described(
    descriptions(tokenizer_from_files(files))["plain"], {"pairs": WebDatasetConfig(shards=f"{folder}/*.tar")}, 2
)
next(loader)
print(json.dumps(loader.process_ids), flush=True)
while True:
    next(loader)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(described, tmp_path, end):
    write_pictures(tmp_path, (30, 20))
    (tmp_path / "tokenizer").mkdir()
    for name, content in described["plain"].texts.tokenizer.files().items():
        (tmp_path / "tokenizer" / name).write_bytes(content)
    parent = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    process_ids = json.loads(parent.stdout.readline())
    assert len(alive(process_ids)) == 2
    parent.send_signal(end)
    parent.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while alive(process_ids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process_ids)
