"""The loop of one stage: all side effects, in the order that they happen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_pipelines.loader import LoadedBatch
from data_pipelines.quota import Tally
from mllm_jax.checkpoint.checkpointer import Checkpointer
from mllm_jax.training.metrics import MetricLog
from mllm_jax.training.progress import Progress
from mllm_jax.training.rates import RateMeter
from mllm_jax.training.signals import StopRequest
from mllm_jax.training.state import TrainState, check_unchanged, fingerprint
from mllm_jax.training.step import TrainStep


@dataclass(frozen=True)
class Rhythm:
    """When the loop does what it does not do at every step."""

    steps: int
    """Of the whole stage."""
    log_every: int
    validate_every: int | None
    save_every: int

    def due(self, step: int, every: int | None) -> bool:
        return every is not None and (step % every == 0 or step == self.steps)


@dataclass(frozen=True)
class LoopParts:
    """What the loop works with."""

    rhythm: Rhythm
    train_step: TrainStep
    validate: Callable[[TrainState], dict[str, float]]
    feed: Iterator[LoadedBatch]
    check_quota: Callable[[Tally], None]
    """Of what was read so far; raises on all processes or on none."""
    save: Callable[[int, TrainState, Any], None]
    """From step, state and data position."""
    checkpointer: Checkpointer
    log: MetricLog
    progress: Progress
    meter: RateMeter
    stop: StopRequest


def run_loop(parts: LoopParts, state: TrainState, start: int) -> tuple[TrainState, bool]:
    """Runs the steps after `start`; returns the state and whether the stage is finished.

    A stage that was told to stop has saved its last step when this returns.

    Raises:
        FrozenChangedError: the first step, or a later one, changed a frozen parameter.
        QuotaExceededError: too much of the data is bad.
    """
    rhythm, meter = parts.rhythm, parts.meter
    frozen_before = fingerprint(state.frozen)
    saved = start
    for step in range(start + 1, rhythm.steps + 1):
        loaded = meter.waiting_for(lambda: next(parts.feed))
        state, metrics = parts.train_step(state, loaded.batch)
        meter.count(metrics, loaded.report)
        if step == start + 1:
            check_unchanged(frozen_before, fingerprint(state.frozen))
        stopping = parts.stop.requested()
        if rhythm.due(step, rhythm.log_every) or step == start + 1:
            parts.log.write(step, meter.report(metrics))
            parts.check_quota(loaded.report.tally)
        if rhythm.due(step, rhythm.validate_every):
            losses = meter.apart(partial(parts.validate, state))
            parts.log.write(step, {f"validation_{name}": loss for name, loss in losses.items()})
        if rhythm.due(step, rhythm.save_every) or stopping:
            meter.apart(partial(parts.save, step, state, loaded.position))
            saved = step
        parts.progress.advance(step)
        if stopping and step < rhythm.steps:
            break
    parts.checkpointer.wait()
    check_unchanged(frozen_before, fingerprint(state.frozen))
    return state, saved == rhythm.steps
