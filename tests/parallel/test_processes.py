import subprocess
import sys

import pytest

from mllm_jax.parallel.processes import ProcessGroup, ProcessStartError, is_cluster, process_group

EXPLICIT = {"MLLM_COORDINATOR": "localhost:1234", "MLLM_PROCESSES": "2", "MLLM_PROCESS_ID": "1"}


def test_explicit_variables_describe_the_group():
    assert process_group(EXPLICIT) == ProcessGroup("localhost:1234", 2, 1)
    assert process_group({}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MLLM_PROCESS_ID": ""}, "MLLM_COORDINATOR, MLLM_PROCESSES is set but MLLM_PROCESS_ID is not"),
        ({"MLLM_PROCESS_ID": "2"}, "MLLM_PROCESS_ID=2 is outside 0 .. 1"),
        ({"MLLM_PROCESSES": "two"}, "MLLM_PROCESSES='two' is not a whole number"),
        ({"MLLM_COORDINATOR": "localhost"}, "is not HOST:PORT"),
    ],
)
def test_wrong_variables_are_explained(change, message):
    with pytest.raises(ProcessStartError, match=message):
        process_group(EXPLICIT | change)


def test_a_cluster_is_one_only_with_several_processes():
    assert is_cluster({"SLURM_STEP_NUM_TASKS": "4"})
    assert is_cluster({"TPU_WORKER_HOSTNAMES": "host-0,host-1"})
    assert not is_cluster({"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "7", "TPU_WORKER_HOSTNAMES": "host-0"})


def test_an_unreachable_coordinator_is_an_error_within_the_time_limit():
    code = (
        "from mllm_jax.parallel.processes import start_processes\n"
        "import os\n"
        "os.environ.update(MLLM_COORDINATOR='localhost:1', MLLM_PROCESSES='2', MLLM_PROCESS_ID='1')\n"
        "start_processes(timeout_seconds=2)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert "could not join localhost:1 as process 1 within 2 s" in ended.stderr
