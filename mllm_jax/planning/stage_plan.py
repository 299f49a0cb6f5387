"""The plan of one stage: its true step compiled for a topology, or what is known of it where nothing compiles."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from mllm_jax.batch_form import abstract_batch, batch_form
from mllm_jax.parallel.rules import batch_sharding, row_ways, use_mesh
from mllm_jax.planning.feed import Bill, Feed, bill, feed
from mllm_jax.planning.links import Links
from mllm_jax.planning.memory import (
    MemoryUse,
    OutOfMemory,
    Replicated,
    kept_between_passes,
    memory_use,
    out_of_memory,
    replicated_parameters,
    state_bytes,
)
from mllm_jax.planning.planned_run import PlannedRun
from mllm_jax.planning.program_cost import ProgramCost, program_cost
from mllm_jax.planning.topology import Topology
from mllm_jax.training.flops import step_cost_by_part
from mllm_jax.training.plan import Stage
from mllm_jax.training.stage_run import compiled_step
from mllm_jax.training.stages import StageConfig

REAL_OVER_PREDICTED = 0.92
REAL_RANGE = (0.89, 0.96)
"""Step times of published TPU runs, divided by what this analysis predicts of the same configurations."""


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is asked for beside the run file and the topology."""

    price_per_chip_hour: float | None = None
    samples_per_row: float | None = None
    """None: one for each image slot, or one where there is none."""
    assumed_mfu: float = 0.4
    """Of machines for which nothing compiles here."""


@dataclass(frozen=True)
class StagePlan:
    """What is known of one stage on one topology; figures are of one device and one step where nothing else is said."""

    stage: StageConfig
    topology: Topology
    mesh: Mapping[str, int]
    memory: MemoryUse | None
    """None: the compiler ran out of memory, and `failure` says of what."""
    state: Mapping[str, float]
    """Bytes that a device is given, by what they are."""
    cost: ProgramCost | None
    """None: nothing was compiled."""
    model_flops: Mapping[str, float] | None
    """FLOPs that the model asks for, of all devices, by part: every place and slot filled, nothing recomputed. None:
    the step is not one pass of the model, and they cannot be counted."""
    replicated: tuple[Replicated, ...]
    compile_seconds: float
    predicted: float | None
    """Seconds of a step; None: no compiler said it."""
    expected: float | None
    """Seconds of a step as they are likely to be measured."""
    feed: Feed | None
    bill: Bill | None
    failure: OutOfMemory | None = None

    @property
    def fits(self) -> bool:
        return self.failure is None and (self.memory is None or self.memory.fits)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs over the peak in the predicted time."""
        return self._share_of_peak(self.predicted)

    @property
    def expected_mfu(self) -> float | None:
        return self._share_of_peak(self.expected)

    def _share_of_peak(self, seconds: float | None) -> float | None:
        if seconds is None or self.model_flops is None or self.topology.chip is None:
            return None
        return sum(self.model_flops.values()) / (self.topology.chip.peak * self.topology.size * seconds)


def plan_stage(planned: PlannedRun, stage: Stage, options: PlanOptions) -> StagePlan:
    """Compiles the step of a stage and reads what it costs; no weight is allocated.

    A step that does not fit is a plan with a `failure`. Other errors of the compiler are raised as they are.
    """
    topology, chip = planned.topology, planned.topology.chip
    form, rows = batch_form(planned.run.ingredients.model, stage.config), batch_sharding(planned.run.mesh)
    batch = abstract_batch(form, stage.config, rows)
    state = state_bytes(stage.abstract, batch)
    compiled, failure, seconds = _compiled(planned, stage, batch)
    mesh = dict(planned.run.mesh.shape)
    cost = memory = None
    if compiled is not None:
        links = Links.of(topology, list(planned.run.mesh.devices.flat))
        cost = program_cost(compiled.as_text(), links, mesh)
        memory = memory_use(compiled, state, None if chip is None else chip.memory_bytes)
    model_flops = _model_flops(planned, stage)
    predicted, expected = _step_seconds(planned, cost, model_flops, options)
    slots = float(max(stage.config.images_per_row, 1))
    samples = slots if options.samples_per_row is None else options.samples_per_row
    row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) / stage.config.rows
    price = options.price_per_chip_hour
    return StagePlan(
        stage=stage.config,
        topology=topology,
        mesh=mesh,
        memory=memory,
        state=state,
        cost=cost,
        model_flops=model_flops,
        replicated=tuple(replicated_parameters(stage.abstract)),
        compile_seconds=seconds,
        predicted=predicted,
        expected=expected,
        feed=feed(stage.config, topology, expected, row_bytes, samples) if expected else None,
        bill=bill(stage.config, topology, expected, price) if expected else None,
        failure=failure,
    )


def _compiled(planned: PlannedRun, stage: Stage, batch: Any) -> tuple[Any, OutOfMemory | None, float]:
    """The compiled step, or why it does not fit, and the seconds that this took; no step where nothing compiles."""
    began = time.monotonic()
    if planned.topology.chip is not None and not planned.topology.is_tpu:
        return None, None, 0.0
    with use_mesh(planned.run.mesh):
        lowered = compiled_step(stage, planned.run).lower(stage.abstract, batch)
        try:
            return lowered.compile(), None, time.monotonic() - began
        except jax.errors.JaxRuntimeError as error:
            failure = out_of_memory(str(error))
            if failure is None:
                raise
            if not failure.buffers:
                kept = kept_between_passes(lowered.as_text(), _row_counts(stage.config), row_ways(planned.run.mesh))
                failure = failure._replace(buffers=tuple(sorted(kept, reverse=True)))
            return None, failure, time.monotonic() - began


def _row_counts(stage: StageConfig) -> set[int]:
    rows = {stage.rows, stage.rows // stage.accumulate}
    return rows | {count * stage.images_per_row for count in rows if stage.images_per_row}


def _model_flops(planned: PlannedRun, stage: Stage) -> dict[str, float] | None:
    if not stage.objective.one_pass:
        return None
    config, model = stage.config, planned.run.ingredients.model
    trainable = flatten_dict(stage.abstract.trainable, sep="/")
    parts = step_cost_by_part(model, stage.abstract_parameters(), trainable, stage.objective.again)
    tokens, images = config.rows * config.row_length, config.rows * config.images_per_row
    attended = config.rows * config.row_length * (config.row_length + 1) / 2
    return {part: cost.flops(tokens, images, attended) for part, cost in parts.items()}


def _step_seconds(
    planned: PlannedRun, cost: ProgramCost | None, model_flops: Mapping[str, float] | None, options: PlanOptions
) -> tuple[float | None, float | None]:
    """Predicted, and likely to be measured."""
    topology = planned.topology
    if topology.is_tpu:
        return (None, None) if cost is None else (cost.seconds, cost.seconds * REAL_OVER_PREDICTED)
    if topology.chip is None or model_flops is None:
        return None, None
    peak = topology.chip.peak * topology.size * options.assumed_mfu
    return None, sum(model_flops.values()) / peak
