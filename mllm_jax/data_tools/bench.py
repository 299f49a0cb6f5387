"""How fast this machine loads a stage's data, and how many cores that makes for a model on an accelerator."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from data_pipelines.batch import Batch
from data_pipelines.loader import Loader
from data_pipelines.loader_speed import LoaderSpeed, loader_speed
from data_pipelines.suggestion import suggest
from mllm_jax.assemble import make_ingredients
from mllm_jax.config import RunConfig, stage_named
from mllm_jax.data_side import DataSide, data_side
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.flops import StepCost
from mllm_jax.training.host_cores import ACCELERATORS, HostCores, RowCost, host_cores
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.plan import Run, plan_stages
from mllm_jax.training.stages import StageConfig
from mllm_jax.training.step import batch_counts

UNDECODED_SHARE = 0.5
"""Seconds without decoding for each with it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """For what devices cores are counted."""

    accelerator: str
    """A key of `ACCELERATORS`."""
    devices: int
    mfu: float
    """Share of the devices' peak that the model's own operations are taken to reach."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured, and what follows from it."""

    stage: str
    cores_here: int
    threads: int
    """That decode, in a process."""
    loader: LoaderSpeed
    """In threads of one process."""
    undecoded: LoaderSpeed
    """Likewise, with black images that cost nothing."""
    spread: LoaderSpeed | None
    """In the processes of `data.processes`; None: the run file wants none."""
    spread_undecoded: LoaderSpeed | None
    wanted: Wanted | None
    flops_per_row: float | None
    """Of the model; None: no devices were named."""
    needed: HostCores | None

    @property
    def process_samples_per_second(self) -> float | None:
        """That one process can reach at most, however many cores it has."""
        packing = self.loader.packing_ms_per_sample
        return None if packing is None else 1000 / packing

    @property
    def gathered_samples_per_second(self) -> float | None:
        """That all processes of the loader can reach at most, however many they are; None: there are none."""
        gathering = None if self.spread is None else self.spread.gathering_ms_per_sample
        return None if gathering is None else 1000 / gathering

    def to_json(self) -> dict[str, Any]:
        needed = None if self.needed is None else self.needed._asdict()
        limits = ("process_samples_per_second", "gathered_samples_per_second")
        return asdict(self) | {name: getattr(self, name) for name in limits} | {"needed": needed}


def wanted_devices(accelerator: str | None, devices: int | None, mfu: float) -> Wanted | None:
    """What the command line says of devices; None: nothing.

    Raises:
        ValueError: an accelerator that is not known, or numbers that cannot be.
    """
    if accelerator is None:
        if devices is not None:
            raise ValueError("--devices: say of which kind by --accelerator")
        return None
    if accelerator not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise ValueError(
            f"--accelerator: found {accelerator!r}, expected one of {known}.{suggest(accelerator, ACCELERATORS)}"
        )
    devices = ACCELERATORS[accelerator].devices_per_host if devices is None else devices
    if devices < 1:
        raise ValueError(f"--devices: found {devices}, expected at least 1")
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu: found {mfu:g}, expected a share of the peak above 0 and at most 1")
    return Wanted(accelerator, devices, mfu)


def bench(config: RunConfig, stage_name: str | None, seconds: float, wanted: Wanted | None) -> Bench:
    """Measures the loader of a stage, with and without decoding, in one process and in several; no weights are read.

    Args:
        config: of the run.
        stage_name: None: the first stage.
        seconds: that are measured with decoding, of one process and of several.
        wanted: the devices for which cores are counted; None: for none.

    Raises:
        ValueError: there is no such stage, its model's operations cannot be counted, or as training would raise.
    """
    if not seconds > 0:
        raise ValueError(f"--seconds: found {seconds:g}, expected more than 0")
    # An accelerator may be busy with a training of its own, and no other process may touch it.
    jax.config.update("jax_platforms", "cpu")
    stage = stage_named(config, stage_name)
    cost = None if wanted is None else _step_cost(config, stage)
    data, counts = data_side(config), Counter[str]()

    def note(batch: Batch) -> None:
        counts.update({name: float(count) for name, count in batch_counts(batch).items()})

    speed = loader_speed(_loader(data, stage, 0), seconds, note)
    undecoded = loader_speed(_loader(data, stage, 0, blank=True), UNDECODED_SHARE * seconds)
    processes, spread, spread_undecoded = config.data.processes, None, None
    if processes:
        spread = loader_speed(_loader(data, stage, processes), seconds)
        spread_undecoded = loader_speed(_loader(data, stage, processes, blank=True), UNDECODED_SHARE * seconds)
    flops, needed = None, None
    if wanted is not None and cost is not None:
        # How far tokens see is not in the loader's reports; the batches of the warm-up tell it.
        attended = speed.tokens_per_row * counts["attended"] / max(counts["tokens"], 1)
        flops = cost.flops(speed.tokens_per_row, speed.images_per_row, attended)
        row = RowCost(
            flops=flops,
            samples=speed.samples_per_row,
            images=speed.images_per_row,
            cpu_seconds=(spread or speed).cpu_ms_per_sample * speed.samples_per_row / 1000,
            packing_seconds=(speed.packing_ms_per_sample or 0) * speed.samples_per_row / 1000,
        )
        needed = host_cores(ACCELERATORS[wanted.accelerator], wanted.devices, wanted.mfu, row)
    return Bench(
        stage=stage.name,
        cores_here=os.cpu_count() or 1,
        threads=config.data.threads,
        loader=speed,
        undecoded=undecoded,
        spread=spread,
        spread_undecoded=spread_undecoded,
        wanted=wanted,
        flops_per_row=flops,
        needed=needed,
    )


def _loader(data: DataSide, stage: StageConfig, processes: int, *, blank: bool = False) -> Callable[[], Loader]:
    # A mixture that ends may do so before there is anything to measure.
    endless = stage.model_copy(update={"mixture": stage.mixture.endless})
    request = FeedRequest(endless, "train", sharding=None, position=None)
    work = data.config.data.loader.model_copy(update={"processes": processes})
    return lambda: data.open_feed(request, blank=blank, work=work)


def _step_cost(config: RunConfig, stage: StageConfig) -> StepCost:
    """What the stage's model asks of devices; whatever mesh it runs on."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    run = Run(Path(config.output), make_ingredients(config), mesh, config.checkpoint, config.logging, console=None)
    planned = next(each for each in plan_stages(config.stages, run) if each.config.name == stage.name)
    cost = planned.step_cost(run.ingredients.model)
    if cost is None:
        raise ValueError(
            f"--accelerator: the operations of stage {stage.name!r} cannot be counted: a step of objective "
            f"{stage.objective.kind!r} is not one pass of the model. Leave it out to measure the loader alone."
        )
    return cost
