"""Looks for the mesh, the rows at a time and what is recomputed with which a stage fits and is fastest."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from mllm_jax.config import RunConfig
from mllm_jax.models.layers.stack import RematName
from mllm_jax.parallel.mesh import axes_of, mesh_shape
from mllm_jax.planning.sweep import Attempt, Changes
from mllm_jax.planning.topology import Topology
from mllm_jax.training.stages import StageConfig

MOST_TENSOR_WAYS = 8
MOST_PARTS = 16

Choices = Mapping[str, Sequence[str]]
"""What is searched over: a name -> the values that it may have."""


def choices_of(stage: StageConfig, topology: Topology) -> Choices:
    """What a search of a stage tries, in the order in which it tries it."""
    meshes = [
        f"{{data: {data}, fsdp: -1, tensor: {tensor}}}"
        for tensor in _powers_of_two(min(MOST_TENSOR_WAYS, topology.size))
        for data in _powers_of_two(topology.size // tensor)
    ]
    parts = [str(parts) for parts in _powers_of_two(min(MOST_PARTS, stage.rows)) if stage.rows % parts == 0]
    return {
        "model.decoder.architecture.stack.remat": list(get_args(RematName)),
        f"stages.{stage.name}.accumulate": parts,
        # The mesh that copies nothing first: it takes least memory.
        "parallel": meshes,
    }


def start_of(config: RunConfig, stage: StageConfig, topology: Topology) -> Changes:
    """What a run file says of a stage's choices, written as `choices_of` writes them."""
    start = {f"stages.{stage.name}.accumulate": str(stage.accumulate)}
    start["model.decoder.architecture.stack.remat"] = config.model.decoder.architecture["stack"]["remat"]
    sizes = dict(zip(axes_of(config.parallel), mesh_shape(config.parallel, topology.size), strict=True))
    if sizes.get("expert", 1) == sizes["sequence"] == 1:
        start["parallel"] = f"{{data: {sizes['data']}, fsdp: -1, tensor: {sizes['tensor']}}}"
    return start


def _powers_of_two(most: int) -> list[int]:
    return [2**exponent for exponent in range(most.bit_length()) if 2**exponent <= most]


def search(choices: Choices, start: Changes, evaluate: Callable[[Changes], Attempt], budget: int) -> list[Attempt]:
    """Tries, for each value of the first choice, those of the second until one fits; then, with the best of these, the
    values of every other choice, each time keeping what is better.

    The first two both trade time for memory, so that the best of one depends on the other; a later value of the second
    is never faster than an earlier one that fits.

    Args:
        choices: what may be changed.
        start: the first attempt; what it does not say is as in the run file.
        evaluate: plans a run with changes.
        budget: compiles at most; an attempt that cannot run, which is found without compiling, is none.

    Returns:
        Every attempt, in their order.
    """
    known: dict[tuple[tuple[str, str], ...], Attempt] = {}

    def tried(changes: Changes) -> Attempt | None:
        key = tuple(sorted(changes.items()))
        if key not in known:
            if sum(1 for each in known.values() if each.plans) >= budget:
                return None
            known[key] = evaluate(changes)
        return known[key]

    tried(start)
    first, second, *others = choices
    for value in choices[first]:
        for other in choices[second]:
            found = tried({**start, first: value, second: other})
            if found is not None and found.fits:
                break
    for name in others:
        for value in choices[name]:
            tried({**min(known.values(), key=rank).changes, name: value})
    return list(known.values())


def rank(attempt: Attempt) -> tuple[int, float]:
    """Smaller is better: what fits by its time, then what does not by the memory that it lacks."""
    if attempt.fits and attempt.seconds is not None:
        return 0, attempt.seconds
    needed = [plan.failure.needed for plan in attempt.plans if plan.failure is not None and plan.failure.needed]
    needed += [] if attempt.peak is None else [attempt.peak]
    return (1, max(needed)) if needed else (2, 0.0)


def best_of(attempts: Sequence[Attempt]) -> Attempt | None:
    """The fastest that fits; None: none does."""
    fitting = [each for each in attempts if rank(each)[0] == 0]
    return min(fitting, key=rank, default=None)


def pareto(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Those that fit and that no other beats in both time and memory, fastest first."""
    front: list[Attempt] = []
    for each in sorted((each for each in attempts if rank(each)[0] == 0), key=lambda each: (each.seconds, each.peak)):
        if not front or (each.peak or 0.0) < (front[-1].peak or 0.0):
            front.append(each)
    return front


def write_override(run_file: str, changes: Changes, output: str) -> None:
    """A run file that extends another with changes."""
    values: dict[str, Any] = {"extends": os.path.relpath(run_file, Path(output).parent)}
    for key, value in changes.items():
        *parents, last = key.split(".")
        here = values
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = yaml.safe_load(value)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
