"""Memory stays flat while a stream goes on: what benchmarks/memory.py measures, held to its promise."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support.benchmark_modules import BENCHMARKS, benchmark

memory = benchmark("memory")


def test_the_memory_is_looked_at_after_every_equal_part_of_the_records(monkeypatch):
    seen = [0]

    def counts():
        while True:
            seen[0] += 7
            yield 7

    monkeypatch.setattr(memory, "memory_mb", lambda: seen[0])
    found = memory.looks(counts(), 2000)
    wanted = np.arange(1, memory.LOOKS + 1) * 2000 / memory.LOOKS
    assert len(found) == memory.LOOKS and np.all((found >= wanted) & (found < wanted + 7))


@pytest.mark.soak
def test_a_long_stream_does_not_grow():
    script = [sys.executable, str(BENCHMARKS / "memory.py"), "--records", "150000", "--samples", "12800"]
    told = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert {case: found["grown_mb"] < memory.GROWN_MB for case, found in told["cases"].items()} == dict.fromkeys(
        memory.CASES, True
    ), told
