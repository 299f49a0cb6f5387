"""A run in a process of its own: killed and told to stop. `test_process_faults` has those of several processes."""

import json
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mllm_jax.checkpoint.reading import latest_stored_step
from mllm_jax.training.signals import STOPPED_EXIT_CODE
from tests.support.processes import ended, start_group, until

STEPS = 6


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts one process of a run; programs compiled by one process are found by the next."""
    cache = str(tmp_path_factory.mktemp("compiled"))

    def start(folder):
        arguments = [str(folder), str(STEPS), "2,2,1", "2"]
        (process,) = start_group(
            "tests.support.tiny_training", arguments, processes=1, devices=4, JAX_COMPILATION_CACHE_DIR=cache
        )
        return process

    return start


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}


def trained(folder):
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(latest_stored_step(folder).folder.absolute() / "parameters")


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(start(folder))[0] == 0
    return folder


def test_killed_and_stopped_at_any_point_it_ends_bit_identical(start, undisturbed, tmp_path):
    for beginning in ("align 3/", "instruct 4/"):
        process = start(tmp_path)
        until(process, beginning)
        process.kill()
        ended(process)
    process = start(tmp_path)
    # The table comes before the first step, which takes long because it compiles.
    until(process, "stage instruct:")
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == STOPPED_EXIT_CODE, output
    assert "the same command goes on from here" in output
    code, output = ended(start(tmp_path))
    assert code == 0, output

    assert losses_of(tmp_path) == losses_of(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, trained(tmp_path), trained(undisturbed))
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["stage"], line["step"], "loss" in line) for line in steps]
    assert len(seen) == len(set(seen))
