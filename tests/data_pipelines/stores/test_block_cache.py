import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.stores.block_cache import BlockCache
from data_pipelines.stores.blocks import BlockName
from tests.support.processes import ROOT, until
from tests.support.range_server import range_server

BLOCK = 4096
LIMIT = 64 * BLOCK
DATA = os.urandom(BLOCK)


def name(number, length=BLOCK, key="a" * 32):
    return BlockName(key, number, length)


def cache(folder, **changes):
    return BlockCache(str(folder), **({"limit": LIMIT, "block_bytes": BLOCK} | changes))


def held(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def test_a_block_is_there_for_everyone_who_has_the_folder(tmp_path):
    cache(tmp_path).put(name(3), DATA)
    other = cache(tmp_path)
    assert other.read(name(3), 10, 20) == DATA[10:20] and other.read(name(3), 0, BLOCK) == DATA
    assert other.read(name(4), 0, 1) is None and other.read(name(3, key="b" * 32), 0, 1) is None
    assert other.room(name(4)) and not other.room(name(3))


@settings(max_examples=40, deadline=None)
@given(damage=st.sampled_from(["cut", "longer", "flipped", "empty", "zeros"]), place=st.integers(0, BLOCK + 15))
def test_a_damaged_file_is_never_read(tmp_path_factory, damage, place):
    folder = tmp_path_factory.mktemp("cache")
    cache(folder).put(name(0), DATA)
    (path,) = folder.rglob("*.block")
    whole = path.read_bytes()
    flipped = bytes([whole[place] ^ 1])
    damaged = {
        "cut": whole[:place],
        "longer": whole + b"\0",
        "flipped": whole[:place] + flipped + whole[place + 1 :],
        "empty": b"",
        "zeros": bytes(len(whole)),
    }
    path.write_bytes(damaged[damage])
    reader = cache(folder)
    assert reader.read(name(0), 0, 9) is None and not path.exists()
    reader.put(name(0), DATA)
    assert reader.read(name(0), 0, 9) == DATA[:9]


def test_a_shorter_last_block_is_not_taken_for_a_whole_one(tmp_path):
    cache(tmp_path).put(name(0, 100), DATA[:100])
    assert cache(tmp_path).read(name(0, 100), 0, 100) == DATA[:100]
    assert cache(tmp_path).read(name(0), 0, 100) is None


@pytest.mark.parametrize("processes", [1, 8])
def test_the_limit_holds_and_what_was_used_last_stays(tmp_path, processes):
    writers = [cache(tmp_path) for _ in range(processes)]
    for number in range(150):
        writers[number % processes].put(name(number), DATA)
        os.utime(next(tmp_path.rglob(f"{number}.block")), ns=(number, number))
        assert held(tmp_path) <= LIMIT
    left = sorted(int(path.stem) for path in tmp_path.rglob("*.block"))
    assert left == list(range(150 - len(left), 150)) and len(left) >= 40


def test_a_block_that_is_open_is_read_on_after_it_was_removed(tmp_path):
    reader = cache(tmp_path)
    reader.put(name(0), DATA)
    assert reader.read(name(0), 0, 5) == DATA[:5]
    next(tmp_path.rglob("*.block")).unlink()
    assert reader.read(name(0), 5, 9) == DATA[5:9]


def test_nothing_else_in_the_folder_is_touched(tmp_path):
    (tmp_path / "mine").write_bytes(bytes(2 * LIMIT))
    writer = cache(tmp_path)
    for number in range(70):
        writer.put(name(number), DATA)
    assert (tmp_path / "mine").stat().st_size == 2 * LIMIT and len(list(tmp_path.rglob("*.block"))) > 40


def start(address, folder, *stuck):
    command = [sys.executable, "-m", "tests.support.cached_reader", address, str(folder), *stuck]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_process_killed_in_the_middle_of_a_write_harms_no_other(tmp_path):
    contents = os.urandom(10 * BLOCK + 5)
    expected = f"read {hashlib.sha256(contents).hexdigest()}\n"
    with range_server() as server:
        server.files["a.tar"] = contents
        address = server.address("a.tar")
        killed = start(address, tmp_path, "stuck")
        until(killed, "stuck")
        assert len(list(tmp_path.rglob("*.block"))) == 2 and len(list(tmp_path.rglob(".*"))) == 1
        beside = start(address, tmp_path)
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert beside.communicate()[0] == expected
        requests = server.asked().total()
        assert requests == 3 + 9
        assert start(address, tmp_path).communicate()[0] == expected
        assert server.asked().total() == requests
    (part,) = tmp_path.rglob(".*")
    os.utime(part, ns=(0, 0))
    writer = cache(tmp_path)
    for number in range(100):
        writer.put(name(number), DATA)
    assert not part.exists() and held(tmp_path) <= LIMIT
