"""The same stages planned with other values of some keys, one compile each."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_pipelines.suggestion import suggest
from mllm_jax.config import RunConfig
from mllm_jax.planning.planned_run import on_topology, read_on_paper
from mllm_jax.planning.stage_plan import PlanOptions, StagePlan, plan_stage
from mllm_jax.planning.topology import Topology
from mllm_jax.training.stages import StageConfig

Changes = Mapping[str, str]
"""Key path in the run file -> value, as on the command line."""


@dataclass(frozen=True)
class Attempt:
    """A run file with changes, planned."""

    changes: Changes
    plans: tuple[StagePlan, ...] = ()
    problem: str | None = None
    """Why nothing was compiled: a mesh or a batch that does not fit."""

    @property
    def fits(self) -> bool:
        return bool(self.plans) and all(plan.fits for plan in self.plans)

    @property
    def seconds(self) -> float | None:
        """Of a step of each stage, together; None: not known, or it does not fit."""
        times = [plan.predicted for plan in self.plans]
        return sum(time for time in times if time is not None) if times and None not in times else None

    @property
    def peak(self) -> float | None:
        """Bytes of a device in the stage that takes most."""
        peaks = [plan.memory.peak for plan in self.plans if plan.memory is not None]
        return max(peaks) if len(peaks) == len(self.plans) and peaks else None


def attempt(
    path: str, overrides: Sequence[str], changes: Changes, topology: Topology, stage: str | None, options: PlanOptions
) -> Attempt:
    """Plans a run file with changes; what cannot run is an attempt with a problem."""
    try:
        changed = [*overrides, *(f"{key}={value}" for key, value in changes.items())]
        planned = on_topology(read_on_paper(path, changed), topology)
    except ValueError as error:
        return Attempt(changes, problem=str(error))
    chosen = [each for each in planned.stages if stage in (None, each.config.name)]
    return Attempt(changes, tuple(plan_stage(planned, each, options) for each in chosen))


def swept(sweeps: Sequence[str], stages: Sequence[StageConfig]) -> Iterator[Changes]:
    """Every combination of the values of `KEY=V1,V2,...`; a key of a stage is one of every stage.

    Raises:
        ValueError: what is swept is not written so.
    """
    axes = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        if not equals or not key or not values:
            raise ValueError(f"--sweep {sweep}: expected a key and its values, such as rows=256,512")
        of_stages = key in StageConfig.model_fields
        if not of_stages and key.split(".")[0] not in RunConfig.model_fields:
            known = suggest(key, (*StageConfig.model_fields, *RunConfig.model_fields))
            raise ValueError(f"--sweep {sweep}: neither a stage nor a run has {key!r}.{known}")
        keys = [f"stages.{stage.name}.{key}" for stage in stages] if of_stages else [key]
        axes.append([dict.fromkeys(keys, value) for value in _split(values)])
    for chosen in itertools.product(*axes):
        yield {key: value for part in chosen for key, value in part.items()}


def _split(values: str) -> list[str]:
    """At commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
