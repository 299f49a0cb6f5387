"""The loop of one stage: all side effects, in the order that they happen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from data_pipelines.loading.loaded_batch import LoadedBatch
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
    """Of the whole stage, if its data do not end before."""
    log_every: int
    validate_every: int | None
    save_every: int

    def due(self, step: int, every: int | None, last: bool = False) -> bool:
        """Whether what happens every so many steps happens at this one; it always does at the last."""
        return every is not None and (step % every == 0 or step == self.steps or last)


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


class LoopEnd(NamedTuple):
    """How a loop ended; what it did is saved."""

    state: TrainState
    step: int
    """The last one."""
    finished: bool
    """Whether the stage is: all steps are done, or the data ended."""


def run_loop(parts: LoopParts, state: TrainState, start: int) -> LoopEnd:
    """Runs the steps after `start`, until the last, the end of the data, or a stop that was asked for.

    Raises:
        ValueError: the data end before the first step.
        FrozenChangedError: the first step, or a later one, changed a frozen parameter.
        QuotaExceededError: too much of the data is bad.
    """
    rhythm, meter = parts.rhythm, parts.meter
    frozen_before = fingerprint(state.frozen)
    step, last = start, start == rhythm.steps
    while not last:
        loaded = meter.waiting_for(lambda: next(parts.feed, None))
        if loaded is None:
            # They ended with the step that was restored, whose process came no further than to save it.
            last = True
            break
        step += 1
        last = loaded.last or step == rhythm.steps
        state, metrics = parts.train_step(state, loaded.batch)
        meter.count(metrics, loaded.report)
        if step == start + 1:
            check_unchanged(frozen_before, fingerprint(state.frozen))
        stopping = parts.stop.requested()
        if rhythm.due(step, rhythm.log_every, last) or step == start + 1:
            parts.log.write(step, meter.report(metrics))
            parts.check_quota(loaded.report.tally)
        if rhythm.due(step, rhythm.validate_every, last):
            losses = meter.apart(partial(parts.validate, state))
            parts.log.write(step, {f"validation_{name}": loss for name, loss in losses.items()})
        if rhythm.due(step, rhythm.save_every, last) or stopping:
            meter.apart(partial(parts.save, step, state, loaded.position))
        parts.progress.advance(step)
        if stopping:
            break
    if step == 0:
        raise ValueError("the mixture ended before it gave a single row: there is nothing to train on")
    parts.checkpointer.wait()
    check_unchanged(frozen_before, fingerprint(state.frozen))
    return LoopEnd(state, step, finished=last)
