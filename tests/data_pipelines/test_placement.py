"""Global arrays over eight simulated devices, and over two real processes."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.batch import Batch
from data_pipelines.loader import Loader, Share
from data_pipelines.positions import gather_positions
from data_pipelines.record import Record
from data_pipelines.rendered import RenderedRecord
from tests.support import two_process_stream
from tests.support.tiny_stream import PREPARATION, render, stream_config, write_pairs


def with_everything(record: Record) -> RenderedRecord:
    """The record as a scored pair of twice the same, with an instruction of its own for its image."""
    number = int(record.key[-4:])
    rendered = replace(render(record), instructions=(np.array([number], np.int32),))
    return replace(rendered, rejected=rendered, reference=(-number, -1.0))


@pytest.mark.parametrize(
    ("shape", "names", "spec"),
    [
        ((8,), ("data",), PartitionSpec("data")),
        ((4, 2), ("data", "tensor"), PartitionSpec("data")),
        ((2, 2, 2), ("data", "fsdp", "sequence"), PartitionSpec(("data", "fsdp"), "sequence")),
    ],
)
def test_the_global_batch_is_the_same_on_any_mesh(tmp_path, shape, names, spec):
    sources = {"pairs": write_pairs(tmp_path, (20, 9))}
    mesh = Mesh(np.array(jax.devices()).reshape(shape), names)
    preparation = replace(PREPARATION, render=with_everything, instruction_tokens=3, preferences=True, references=True)
    with Loader(stream_config(), sources, preparation, 8) as loader:
        expected = next(loader)
    with Loader(stream_config(), sources, preparation, 8, share=Share(NamedSharding(mesh, spec))) as loader:
        found = next(loader)
    assert found.batch.tokens.sharding.spec == spec
    assert found.batch.images.sharding.spec == found.batch.instructions.sharding.spec == PartitionSpec(spec[0])
    for name, one, two in zip(Batch._fields, expected.batch, found.batch, strict=True):
        assert isinstance(two, jax.Array) and np.array_equal(one, np.asarray(two)), name
    assert gather_positions(found.position) == expected.position.to_json()


def run_processes(folder, processes, batches, resume=None):
    """Starts processes that share a stream; returns a digest of each global batch and the gathered position."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    out = folder / f"{processes}-{batches}-{resume is not None}.json"
    arguments = [str(processes), str(port), str(batches), str(folder), str(out), str(resume or "")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // processes}"
    started = [
        subprocess.Popen([sys.executable, two_process_stream.__file__, str(index), *arguments], env=environment)
        for index in range(processes)
    ]
    assert [process.wait(timeout=120) for process in started] == [0] * processes
    return json.loads(out.read_text()), out


def test_a_run_begun_by_one_process_goes_on_with_two_and_back(tmp_path):
    write_pairs(tmp_path, (20, 9, 11))
    whole, _ = run_processes(tmp_path, 1, 6)
    first, saved = run_processes(tmp_path, 1, 2)
    second, saved = run_processes(tmp_path, 2, 3, saved)
    third, _ = run_processes(tmp_path, 1, 1, saved)
    assert first["batches"] + second["batches"] + third["batches"] == whole["batches"]
    assert third["position"] == whole["position"]
