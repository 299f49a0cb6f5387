"""Runs the list of stages: each one begins with the parameters that the one before it left."""

from collections.abc import Sequence
from enum import Enum

from mllm_jax.checkpoint.layout import is_done
from mllm_jax.parallel.rules import use_mesh
from mllm_jax.training.plan import Run, plan_stages
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
        StageError: stages that cannot run; nothing was started.
        ShardingError: parameters that do not divide over the mesh; likewise.
    """
    stages = plan_stages(configs, run)
    done = [is_done(stage.folder) for stage in stages]
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


def _say(run: Run, message: str) -> None:
    if run.console is not None:
        run.console.print(message, highlight=False, soft_wrap=True)
