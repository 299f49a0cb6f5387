"""Starts processes of a run, alone or in groups, and waits for what they print and how they end."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_group(module: str, arguments: Sequence[str], processes: int, devices: int, **environment: str):
    """Starts `module` in each of some processes that train together, with this many simulated devices each."""
    group = {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            group = {"MLLM_COORDINATOR": f"localhost:{free.getsockname()[1]}", "MLLM_PROCESSES": str(processes)}
    return [
        _start(module, arguments, devices, environment | group | ({"MLLM_PROCESS_ID": str(number)} if group else {}))
        for number in range(processes)
    ]


def _start(module: str, arguments: Sequence[str], devices: int, environment: Mapping[str, str]) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        },
    )


def until(process: subprocess.Popen, beginning: str) -> str:
    """Reads what the process prints until a line begins like this; returns the line."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(beginning):
            return line
    raise AssertionError("ended too early:\n" + "".join(seen))


def ended(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    """The exit code and the rest of what was printed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output
