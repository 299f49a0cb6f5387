"""`mllm plan`: the stages of a run file on a topology, with other values too; shown, or printed as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from mllm_jax.config import stage_named
from mllm_jax.planning.attempts_terminal import attempts_table, written
from mllm_jax.planning.page import write_page
from mllm_jax.planning.planned_run import RunOnPaper, on_topology, read_on_paper
from mllm_jax.planning.search import best_of, choices_of, pareto, search, start_of, write_override
from mllm_jax.planning.stage_plan import PlanOptions, StagePlan, plan_stage
from mllm_jax.planning.sweep import Attempt, Changes, attempt, swept
from mllm_jax.planning.terminal import show_plan
from mllm_jax.planning.to_json import plan_json
from mllm_jax.planning.topology import Topology

DOES_NOT_FIT_EXIT_CODE = 3
"""A stage that does not fit in the devices' memory, so that scripts can tell."""


@dataclass(frozen=True)
class Asked:
    """What `mllm plan` is asked for."""

    run_file: str
    overrides: Sequence[str]
    topology: Topology
    stage: str | None
    """None: all."""
    options: PlanOptions
    as_json: bool = False
    page: str | None = None
    """An HTML file to write."""

    def console(self) -> Console:
        return Console(stderr=self.as_json)

    def paper(self) -> RunOnPaper:
        paper = read_on_paper(self.run_file, list(self.overrides))
        if self.stage is not None:
            stage_named(paper.config, self.stage)
        return paper


def show_plans(asked: Asked) -> int:
    """Plans the stages of a run; returns the process's exit code.

    Raises:
        ValueError: a run file, a mesh or a batch that cannot run on the topology.
    """
    console = asked.console()
    planned = on_topology(asked.paper(), asked.topology)
    _say(console, planned.notes)
    plans: list[StagePlan] = []
    for each in planned.stages:
        if asked.stage in (None, each.config.name):
            with console.status(f"compiling the step of stage {each.config.name} for {asked.topology.name}"):
                plans.append(plan_stage(planned, each, asked.options))
            if not asked.as_json:
                show_plan(plans[-1], asked.options, console)
    if asked.as_json:
        print(json.dumps({"notes": planned.notes, "stages": [plan_json(plan) for plan in plans]}))
    if asked.page is not None:
        write_page(asked.page, asked.run_file, plans)
        console.print(f"page: {asked.page}", highlight=False)
    return 0 if all(plan.fits for plan in plans) else DOES_NOT_FIT_EXIT_CODE


def show_sweep(asked: Asked, sweeps: Sequence[str]) -> int:
    """Plans every combination of the swept values.

    Raises:
        ValueError: what is swept is not written as it should be; a value that cannot run is a line of the table.
    """
    console, paper = asked.console(), asked.paper()
    _say(console, paper.notes)
    stages = [each for each in paper.config.stages if asked.stage in (None, each.name)]
    attempts = []
    for changes in swept(sweeps, stages):
        attempts.append(_attempt(asked, console, changes))
    _put_out(asked, console, "every combination", attempts)
    return 0


def show_search(asked: Asked, budget: int, output: str) -> int:
    """Looks for the fastest way to run one stage, and writes it as a run file.

    Raises:
        ValueError: a topology whose compiler says no times.
    """
    if not asked.topology.is_tpu:
        raise ValueError(
            f"--search: only the compiler of a TPU says how long a step takes, not that of {asked.topology.name}"
        )
    console, paper = asked.console(), asked.paper()
    _say(console, paper.notes)
    stage = paper.config.stages[-1] if asked.stage is None else stage_named(paper.config, asked.stage)
    of_stage = Asked(asked.run_file, asked.overrides, asked.topology, stage.name, asked.options, asked.as_json)
    attempts = search(
        choices_of(stage, asked.topology),
        start_of(paper.config, stage, asked.topology),
        partial(_attempt, of_stage, console),
        budget,
    )
    compiled = [each for each in attempts if each.plans]
    title = f"stage {stage.name} on {asked.topology.name}: {len(compiled)} compiles; * none is faster with less memory"
    best = best_of(attempts)
    if best is not None:
        write_override(asked.run_file, best.changes, output)
    _put_out(
        of_stage,
        console,
        title,
        [*sorted(compiled, key=_order), *(each for each in attempts if not each.plans)],
        pareto(attempts),
    )
    said = f"nothing fits among {len(compiled)} compiles" if best is None else f"the fastest that fits: {output}"
    console.print(said, highlight=False, soft_wrap=True)
    return DOES_NOT_FIT_EXIT_CODE if best is None else 0


def _order(each: Attempt) -> tuple[float, float]:
    return each.seconds or float("inf"), each.peak or float("inf")


def _attempt(asked: Asked, console: Console, changes: Changes) -> Attempt:
    written = ", ".join(f"{key}={value}" for key, value in changes.items())
    with console.status(f"compiling with {written}"):
        return attempt(
            asked.run_file, asked.overrides, changes, topology=asked.topology, stage=asked.stage, options=asked.options
        )


def _say(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"! {note}", highlight=False, soft_wrap=True)


def _put_out(
    asked: Asked, console: Console, title: str, attempts: Sequence[Attempt], marked: Sequence[Attempt] = ()
) -> None:
    if not asked.as_json:
        console.print(attempts_table(title, [each for each in attempts if each.plans], marked))
        _say(console, [f"{' '.join(written(each))}: {each.problem}" for each in attempts if each.problem is not None])
        return
    print(json.dumps({"attempts": [_attempt_json(each, each in marked) for each in attempts]}))


def _attempt_json(found: Attempt, on_the_front: bool) -> dict[str, Any]:
    return {
        "changes": dict(found.changes),
        "problem": found.problem,
        "fits": found.fits,
        "pareto": on_the_front,
        "stages": [plan_json(plan) for plan in found.plans],
    }
