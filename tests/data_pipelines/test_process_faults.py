"""A stream that real processes build, all killed in the middle and continued by more or fewer: nothing changes."""

import json
import random
import subprocess
import sys
import time

import pytest

from tests.support.lane_process import LANES, given, newest, opened
from tests.support.processes import ROOT
from tests.support.tiny_stream import BAD_IMAGE, pair, tar_bytes

STEPS = 120


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of several lengths, with a bad image now and then."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, size in enumerate((90, 7, 160, 43)):
        members = [
            member
            for number in range(size)
            for member in pair(
                f"{number:04d}",
                f"pair {shard} {number} " + "x" * (number * 7 % 11),
                BAD_IMAGE + bytes([shard, number]) if number % 40 == 7 else None,
            )
        ]
        (folder / f"{shard}.tar").write_bytes(tar_bytes(members))
    return str(folder / "*.tar")


@pytest.fixture(scope="module")
def undisturbed(shards):
    """What one process gives that nobody disturbs, by step and lane."""
    with opened(shards, range(LANES), None) as loader:
        return {step: given(next(loader), range(LANES)) for step in range(1, STEPS + 1)}


def started(processes, shards, folder):
    arguments = [str(processes), str(newest(folder)), str(STEPS), shards, str(folder)]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.lane_process", str(index), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def killed(group):
    for process in group:
        process.kill()
    return [process.communicate()[0] for process in group]


def written(folder):
    """What was written, by step and lane."""
    return {
        int(step.name): {int(file.stem): json.loads(file.read_text()) for file in step.glob("*.json")}
        for step in folder.iterdir()
    }


def assert_same(found, expected):
    for step, lanes in found.items():
        for lane, said in lanes.items():
            wanted = expected[step][lane]
            assert (said["keys"], said["arrays"]) == (wanted["keys"], wanted["arrays"]), (step, lane)
            assert said["position"]["lanes"] == json.loads(json.dumps(wanted["position"]["lanes"]))


def test_four_processes_then_two_then_eight_all_killed_in_the_middle(shards, undisturbed, tmp_path):
    for processes, until in ((4, 12), (2, 30)):
        group = started(processes, shards, tmp_path)
        while newest(tmp_path) < until:
            assert all(process.poll() is None for process in group), killed(group)
            time.sleep(0.005)
        killed(group)
        assert until <= newest(tmp_path) < STEPS
        assert_same(written(tmp_path), undisturbed)
    for process in started(8, shards, tmp_path):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert_same(written(tmp_path), undisturbed)
    assert newest(tmp_path) == STEPS and len(written(tmp_path)) == STEPS


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_processes_killed_at_random_moments(shards, undisturbed, tmp_path, seed):
    chance = random.Random(seed)
    for _ in range(12):
        group = started(chance.choice((1, 2, 4, 8)), shards, tmp_path)
        time.sleep(chance.uniform(0.3, 3))
        killed(group)
        assert_same(written(tmp_path), undisturbed)
    for process in started(chance.choice((1, 2, 4, 8)), shards, tmp_path):
        assert process.communicate(timeout=120) and process.returncode == 0
    assert_same(written(tmp_path), undisturbed)
    assert newest(tmp_path) == STEPS
