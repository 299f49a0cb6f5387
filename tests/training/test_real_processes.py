"""Runs in processes of their own: killed, told to stop, and two of them together."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mllm_jax.checkpoint.reading import latest_stored_step
from mllm_jax.training.signals import STOPPED_EXIT_CODE

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts one process of a run; programs compiled by one process are found by the next."""
    cache = str(tmp_path_factory.mktemp("compiled"))

    def start(folder, mesh, devices, stages=2, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.tiny_training", str(folder), str(STEPS), mesh, str(stages)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                **environment,
            },
        )

    return start


def until(process, beginning):
    """Reads what the process prints until a line begins like this."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("ended too early:\n" + "".join(seen))


def ended(process):
    """The exit code and the rest of what was printed."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}


def trained(folder):
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(latest_stored_step(folder).folder.absolute() / "parameters")


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(start(folder, "2,2,1", devices=4))[0] == 0
    return folder


def test_killed_and_stopped_at_any_point_it_ends_bit_identical(start, undisturbed, tmp_path):
    for beginning in ("align 3/", "instruct 4/"):
        process = start(tmp_path, "2,2,1", devices=4)
        until(process, beginning)
        process.kill()
        ended(process)
    process = start(tmp_path, "2,2,1", devices=4)
    # The table comes before the first step, which takes long because it compiles.
    until(process, "stage instruct:")
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == STOPPED_EXIT_CODE, output
    assert "the same command goes on from here" in output
    code, output = ended(start(tmp_path, "2,2,1", devices=4))
    assert code == 0, output

    assert losses_of(tmp_path) == losses_of(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, trained(tmp_path), trained(undisturbed))
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["stage"], line["step"], "loss" in line) for line in steps]
    assert len(seen) == len(set(seen))


def start_two(start, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    group = {"MLLM_COORDINATOR": coordinator, "MLLM_PROCESSES": "2"}
    return [start(folder, "2,2,1", devices=2, stages=1, **group, MLLM_PROCESS_ID=str(number)) for number in range(2)]


def test_two_processes_compute_what_one_does_and_stop_together(start, undisturbed, tmp_path):
    pair = start_two(start, tmp_path)
    until(pair[0], "stage align:")
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        code, output = ended(process)
        assert code == STOPPED_EXIT_CODE, output
    for process in start_two(start, tmp_path):
        code, output = ended(process)
        assert code == 0, output
    expected = {(stage, step): loss for (stage, step), loss in losses_of(undisturbed).items() if stage == "align"}
    assert losses_of(tmp_path) == pytest.approx(expected, abs=1e-5)
