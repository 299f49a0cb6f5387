"""Runs the list of stages: each one begins with the parameters that the one before it left."""

from collections.abc import Sequence
from enum import Enum

from mllm_jax.checkpoint.layout import is_done
from mllm_jax.checkpoint.reading import stored_steps
from mllm_jax.parallel.rules import use_mesh
from mllm_jax.training.plan import Run, Stage, StageError, plan_stages
from mllm_jax.training.signals import StopRequest
from mllm_jax.training.stage_run import train_stage
from mllm_jax.training.stages import StageConfig


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    ALREADY_FINISHED = "already finished"
    STOPPED = "stopped"
    """Told to stop, and saved; the same command goes on. See `signals.STOPPED_EXIT_CODE`."""


def run_stages(configs: Sequence[StageConfig], run: Run) -> Outcome:
    """Runs the stages that are not done, and goes on where an earlier start of this run was cut off.

    Raises:
        StageError: stages that cannot run, or one that has begun from what an earlier one no longer has; nothing was
            started.
        ShardingError: parameters that do not divide over the mesh; likewise.
    """
    stages = plan_stages(configs, run)
    done = [is_done(stage.folder) for stage in stages]
    _check_order(stages, done)
    if all(done):
        _say(run, f"{run.folder} is finished: all {len(stages)} stages are done.")
        return Outcome.ALREADY_FINISHED
    with use_mesh(run.mesh), StopRequest() as stop:
        for stage in stages:
            if done[stage.index]:
                _say(run, f"stage {stage.config.name} is done")
            elif not train_stage(stage, stages[: stage.index], run, stop):
                _say(run, f"stopped and saved in stage {stage.config.name}; the same command goes on from here")
                return Outcome.STOPPED
    return Outcome.FINISHED


def _check_order(stages: Sequence[Stage], done: Sequence[bool]) -> None:
    """To train a stage again would change what a later one began from, which would never know."""
    for stage, finished in zip(stages, done, strict=True):
        begun = [later for later in stages[stage.index + 1 :] if done[later.index] or stored_steps(later.folder)]
        if begun and not finished:
            folders = ", ".join(str(later.folder) for later in begun)
            raise StageError(
                f"stages.{stage.index} ({stage.config.name}): {stage.folder} is not finished, but stage "
                f"{begun[0].config.name} has begun from what it left. Restore the folder, or remove {folders} to run "
                "all of them again, or start a new run directory."
            )


def _say(run: Run, message: str) -> None:
    if run.console is not None:
        run.console.print(message, highlight=False, soft_wrap=True)
