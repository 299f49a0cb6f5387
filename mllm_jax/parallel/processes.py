"""Start-up of the processes that train together."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from pydantic import Field

from data_pipelines.config_class import Config

COORDINATOR = "MLLM_COORDINATOR"
PROCESSES = "MLLM_PROCESSES"
PROCESS_ID = "MLLM_PROCESS_ID"

_COUNT_VARIABLES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_HOST_LIST_VARIABLES = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_PRESENCE_VARIABLES = ("MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS")


_GRACE_SECONDS = 60
_WHAT_TO_CHECK = (
    "Check that every process runs, that all agree on the coordinator and on the number of processes, and that the "
    "coordinator's port is free and reachable."
)


class ProcessConfig(Config):
    """How long processes that train together wait for one another."""

    join_seconds: int = Field(default=300, gt=0)
    """At the start, for all of them to appear."""
    lost_seconds: int = Field(default=100, gt=0)
    """Without a heartbeat of a process (its machine or its network is down), after which all the others end. A process
    that dies on a machine that lives is noticed at once."""


class ProcessGroup(NamedTuple):
    """The place of this process among all that train together."""

    coordinator: str
    """`host:port` of process 0."""
    processes: int
    process_id: int


class ProcessStartError(ValueError):
    """The processes could not be joined."""


def process_group(environment: Mapping[str, str]) -> ProcessGroup | None:
    """The group that the MLLM_ variables describe, or None where there are none of them.

    Raises:
        ProcessStartError: a part of the variables is missing, or they contradict each other.
    """
    names = (COORDINATOR, PROCESSES, PROCESS_ID)
    given = [name for name in names if environment.get(name)]
    if not given:
        return None
    missing = [name for name in names if name not in given]
    if missing:
        raise ProcessStartError(
            f"{', '.join(given)} is set but {', '.join(missing)} is not. A start with explicit processes needs all "
            f"three: {COORDINATOR}=HOST:PORT of process 0, {PROCESSES}=how many, {PROCESS_ID}=0 .. {PROCESSES} - 1."
        )
    coordinator = environment[COORDINATOR]
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ProcessStartError(f"{COORDINATOR}={coordinator!r} is not HOST:PORT, for example 10.0.0.1:1234.")
    processes = _whole_number(environment, PROCESSES)
    process_id = _whole_number(environment, PROCESS_ID)
    if processes < 1 or not 0 <= process_id < processes:
        raise ProcessStartError(
            f"{PROCESS_ID}={process_id} is outside 0 .. {processes - 1} ({PROCESSES}={processes}). "
            "Every process needs its own number, counted from 0."
        )
    return ProcessGroup(coordinator, processes, process_id)


def _whole_number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ProcessStartError(f"{name}={environment[name]!r} is not a whole number.") from None


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler that JAX knows has started more than one process of this job."""
    several_tasks = any(environment.get(name, "1") not in ("", "0", "1") for name in _COUNT_VARIABLES)
    several_hosts = any("," in environment.get(name, "") for name in _HOST_LIST_VARIABLES)
    return several_tasks or several_hosts or any(environment.get(name) for name in _PRESENCE_VARIABLES)


def start_processes(
    environment: Mapping[str, str] | None = None, *, timeout_seconds: int = 300, lost_seconds: int = 100
) -> None:
    """Joins this process with the others of the job; call once, before anything touches a device.

    Explicit variables come first (`MLLM_COORDINATOR`, `MLLM_PROCESSES`, `MLLM_PROCESS_ID`), then what
    `jax.distributed` finds out itself (TPU pods, GKE, Slurm, Open MPI); else the process stays alone. When the others
    do not appear within the time limit, the process says so and ends. See `ProcessConfig` for the two times.

    Raises:
        ProcessStartError: the variables are wrong, or the cluster's are not understood.
    """
    environment = os.environ if environment is None else environment
    group = process_group(environment)
    if group is None and not is_cluster(environment):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    place = "the cluster that was detected" if group is None else f"{group.coordinator} as process {group.process_id}"
    try:
        with _time_limit(timeout_seconds, place):
            _initialize(group, timeout_seconds + _GRACE_SECONDS, lost_seconds)
    except (RuntimeError, ValueError) as error:
        raise ProcessStartError(f"Could not join {place}: {error}. {_WHAT_TO_CHECK}") from error


def _initialize(group: ProcessGroup | None, timeout_seconds: int, lost_seconds: int) -> None:
    if group is None:
        jax.distributed.initialize(initialization_timeout=timeout_seconds, heartbeat_timeout_seconds=lost_seconds)
        return
    jax.distributed.initialize(
        coordinator_address=group.coordinator,
        num_processes=group.processes,
        process_id=group.process_id,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout_seconds,
        heartbeat_timeout_seconds=lost_seconds,
    )


@contextlib.contextmanager
def _time_limit(seconds: int, place: str) -> Iterator[None]:
    """Ends the process with a message when the block takes longer.

    JAX's own limit aborts the process from C++ with a stack trace, so ours comes first; no exception could reach a
    thread that waits in C++.
    """

    def end() -> None:
        print(f"mllm: could not join {place} within {seconds} s. {_WHAT_TO_CHECK}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_first_process() -> bool:
    """Whether this process is the one that writes logs and marker files."""
    return jax.process_index() == 0
