"""Runs of several processes that are killed, stopped and continued by fewer or more processes: nothing is lost."""

import json
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mllm_jax.checkpoint.layout import is_done, stage_folders
from mllm_jax.checkpoint.reading import latest_stored_step
from mllm_jax.parallel.watch import LOST_EXIT_CODE
from mllm_jax.training.signals import STOPPED_EXIT_CODE
from tests.support.processes import ended, start_group, until
from tests.support.stream_training import LOST_SECONDS
from tests.support.tiny_stream import BAD_IMAGE, pair, tar_bytes

STEPS = 8
SOON = 60
"""Seconds within which the survivors of a killed process must have ended; they need less than one."""


class Runs:
    """Starts runs on the same shards, and notes what each start read."""

    def __init__(self, folder, bad_every=40):
        self._folder = folder
        self._starts = 0
        self._cache = str(folder / "compiled")
        for shard, size in enumerate((90, 70, 80)):
            members = [
                member
                for number in range(size)
                for member in pair(
                    f"{number:04d}",
                    f"pair {shard} {number} " + "x" * (number * 7 % 11),
                    BAD_IMAGE + bytes([shard, number]) if number % bad_every == 7 % bad_every else None,
                )
            ]
            (folder / f"pairs-{shard}.tar").write_bytes(tar_bytes(members))

    def start(self, run, processes, mesh="2,2,1", devices=4):
        """The processes of a run on this many devices in all."""
        self._starts += 1
        self.keys = self._folder / f"keys-{self._starts}"
        arguments = [str(run), str(self._folder / "pairs-*.tar"), str(self.keys), str(STEPS), mesh]
        cache = {"JAX_COMPILATION_CACHE_DIR": self._cache}
        return start_group("tests.support.stream_training", arguments, processes, devices // processes, **cache)

    def keys_read(self):
        """The keys of each batch of the last start, in the order of its rows."""
        files = sorted(self.keys.parent.glob(self.keys.name + "-*"))
        # A process that was killed may have begun a batch less than the other.
        parts = [file.read_text().splitlines() for file in files]
        return [[key for line in lines for key in json.loads(line)] for lines in zip(*parts, strict=False)]

    def finish(self, run, processes, **group):
        """Starts a run that ends by itself; returns the step after which it went on, and what it read."""
        started = self.start(run, processes, **group)
        outcomes = [ended(process) for process in started]
        assert [code for code, _ in outcomes] == [0] * processes, outcomes
        return went_on_after(outcomes[0][1]), self.keys_read()


def went_on_after(output):
    found = re.search(r"goes on after step (\d+)", output)
    return int(found[1]) if found else 0


def until_a_checkpoint_is_being_written(run, process):
    while not list(run.glob("stages/*/checkpoints/*.orbax-checkpoint-tmp*")):
        assert process.poll() is None
        time.sleep(0.001)


def assert_survivor_ends(group, victim):
    """Kills one of two processes; the other must end with a message."""
    group[victim].kill()
    code, output = ended(group[1 - victim], SOON)
    ended(group[victim])
    assert code == LOST_EXIT_CODE, output
    assert output.count(f"mllm: process {1 - victim} of 2 ends because process {victim} is gone") == 1, output


def measured(run):
    """What `metrics.jsonl` says of each step that does not depend on time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "validation_loss", "records", "skipped_records")
    return [(line["step"], name, line[name]) for line in lines for name in names if name in line]


def trained(run):
    folder = latest_stored_step(run).folder.absolute() / "parameters"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder, restore_args=as_arrays)


def assert_same_run(run, whole, exactly):
    """To f32 rounding where the processes differ: Gloo adds in another order than one process does."""
    assert latest_stored_step(run).step == STEPS
    if exactly:
        assert measured(run) == measured(whole)
        jax.tree.map(np.testing.assert_array_equal, trained(run), trained(whole))
        return
    for (step, name, value), expected in zip(measured(run), measured(whole), strict=True):
        assert (step, name) == expected[:2]
        assert value == pytest.approx(expected[2], abs=1e-5)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-5, rtol=0), trained(run), trained(whole))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """An uninterrupted run of two processes, and the keys that it read."""
    folder = tmp_path_factory.mktemp("whole")
    _, keys = runs.finish(folder, processes=2)
    return folder, keys


def test_metrics_count_what_all_processes_read(whole):
    folder, keys = whole
    records = [value for _, name, value in measured(folder) if name == "records"]
    assert records == [len(batch) for batch in keys]
    skipped = [value for _, name, value in measured(folder) if name == "skipped_records"]
    assert sum(skipped) > 1


def test_a_process_is_killed_while_a_checkpoint_is_written_and_two_or_one_go_on(runs, whole, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    group = runs.start(run, processes=2)
    until(group[0], "pretrain 5/")
    until_a_checkpoint_is_being_written(run, group[0])
    assert_survivor_ends(group, victim=1)
    shutil.copytree(run, copy)

    step, keys = runs.finish(run, processes=2)
    assert 2 <= step < STEPS and keys == whole[1][step:]
    assert_same_run(run, whole[0], exactly=True)

    assert runs.finish(copy, processes=1) == (step, keys)
    assert_same_run(copy, whole[0], exactly=False)


def test_one_process_is_killed_two_go_on_and_are_stopped_and_one_ends_the_run(runs, whole, tmp_path):
    (process,) = runs.start(tmp_path, processes=1)
    until(process, "pretrain 5/")
    process.kill()
    ended(process)

    group = runs.start(tmp_path, processes=2)
    until(group[0], "stage pretrain: goes on")
    group[1].send_signal(signal.SIGTERM)
    outcomes = [ended(process) for process in group]
    assert [code for code, _ in outcomes] == [STOPPED_EXIT_CODE] * 2, outcomes
    read = runs.keys_read()

    step, keys = runs.finish(tmp_path, processes=1)
    begun = step - len(read)
    assert 2 <= begun < step < STEPS and read + keys == whole[1][begun:]
    assert_same_run(tmp_path, whole[0], exactly=False)


@pytest.mark.soak
@pytest.mark.parametrize("sizes", [(2,), (1, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_faults_at_random_moments_change_nothing(runs, whole, tmp_path, seed, sizes):
    chance = random.Random(seed)
    for _ in range(6):
        group = runs.start(tmp_path, processes=chance.choice(sizes))
        began = went_on_after(until(group[0], "stage pretrain:"))
        time.sleep(chance.uniform(0, 20))
        kind, victim = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)), chance.randrange(len(group))
        group[victim].send_signal(kind)
        codes = [ended(process, SOON + LOST_SECONDS)[0] for process in group]
        read = runs.keys_read()
        assert read == whole[1][began : began + len(read)]
        if is_done(stage_folders(tmp_path)[0]):
            break
        if kind == signal.SIGTERM:
            assert set(codes) == {STOPPED_EXIT_CODE}
        else:
            assert codes.pop(victim) == -signal.SIGKILL and set(codes) <= {LOST_EXIT_CODE}
    else:
        step, keys = runs.finish(tmp_path, chance.choice(sizes))
        assert keys == whole[1][step:]
    assert_same_run(tmp_path, whole[0], exactly=sizes == (2,))


@pytest.mark.soak
def test_four_then_two_then_eight_processes_all_killed_in_the_middle(runs, tmp_path):
    alone, run = tmp_path / "alone", tmp_path / "run"
    begun, keys = runs.finish(alone, 1, mesh="4,2,1", devices=8)
    assert begun == 0 and len(keys) == STEPS
    for processes, until_step in ((4, 3), (2, 5)):
        group = runs.start(run, processes, mesh="4,2,1", devices=8)
        began = went_on_after(until(group[0], "stage pretrain:"))
        until(group[0], f"pretrain {until_step}/")
        for process in group:
            process.kill()
        for process in group:
            ended(process)
        read = runs.keys_read()
        assert read and read == keys[began : began + len(read)]
    step, rest = runs.finish(run, 8, mesh="4,2,1", devices=8)
    assert 2 <= step < STEPS and rest == keys[step:]
    assert_same_run(run, alone, exactly=False)


@pytest.mark.soak
def test_the_coordinator_is_killed_while_a_checkpoint_is_written_and_the_pair_goes_on(runs, whole, tmp_path):
    group = runs.start(tmp_path, processes=2)
    until(group[0], "pretrain 5/")
    until_a_checkpoint_is_being_written(tmp_path, group[0])
    assert_survivor_ends(group, victim=0)
    step, keys = runs.finish(tmp_path, processes=2)
    assert keys == whole[1][step:]
    assert_same_run(tmp_path, whole[0], exactly=True)


@pytest.mark.soak
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_stands_still_is_given_up_after_the_time_of_the_config(runs, tmp_path, victim):
    group = runs.start(tmp_path, processes=2)
    until(group[0], "pretrain 1/")
    group[victim].send_signal(signal.SIGSTOP)
    try:
        code, _ = ended(group[1 - victim], SOON + 2 * LOST_SECONDS)
    finally:
        group[victim].kill()
        ended(group[victim])
    assert code not in (0, STOPPED_EXIT_CODE)


@pytest.mark.soak
def test_too_much_bad_data_ends_all_processes_alike(tmp_path):
    group = Runs(tmp_path, bad_every=4).start(tmp_path / "run", processes=2)
    for code, output in map(ended, group):
        assert (code, "records are bad" in output) == (1, True), output


@pytest.mark.soak
@pytest.mark.parametrize(("mesh", "devices"), [("2,2,2", 8), ("8,1,1", 8), ("1,2,1", 2)])
def test_a_run_of_one_process_goes_on_with_two_on_any_mesh(runs, whole, tmp_path, mesh, devices):
    (process,) = runs.start(tmp_path, 1, mesh, devices)
    until(process, "pretrain 5/")
    process.kill()
    ended(process)
    step, keys = runs.finish(tmp_path, 2, mesh=mesh, devices=devices)
    assert keys == whole[1][step:]
    assert_same_run(tmp_path, whole[0], exactly=False)
