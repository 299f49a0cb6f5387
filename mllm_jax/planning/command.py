"""`mllm plan`: every stage of a run file on a topology, shown or printed as JSON."""

import json

from rich.console import Console

from mllm_jax.config import stage_named
from mllm_jax.planning.planned_run import on_topology, read_on_paper
from mllm_jax.planning.stage_plan import PlanOptions, plan_stage
from mllm_jax.planning.terminal import show_plan
from mllm_jax.planning.to_json import plan_json
from mllm_jax.planning.topology import Topology

DOES_NOT_FIT_EXIT_CODE = 3
"""A stage that does not fit in the devices' memory, so that scripts can tell."""


def show_plans(
    path: str, overrides: list[str], topology: Topology, stage: str | None, options: PlanOptions, *, as_json: bool
) -> int:
    """Plans one stage of a run, or all; returns the process's exit code.

    Raises:
        ValueError: a run file, a mesh or a batch that cannot run on the topology.
    """
    console = Console(stderr=as_json)
    paper = read_on_paper(path, overrides)
    chosen = stage if stage is None else stage_named(paper.config, stage).name
    planned = on_topology(paper, topology)
    for note in planned.notes:
        console.print(f"! {note}", highlight=False, soft_wrap=True)
    plans = []
    for each in planned.stages:
        if chosen in (None, each.config.name):
            with console.status(f"compiling the step of stage {each.config.name} for {topology.name}"):
                plans.append(plan_stage(planned, each, options))
            if not as_json:
                show_plan(plans[-1], options, console)
    if as_json:
        print(json.dumps({"notes": planned.notes, "stages": [plan_json(plan) for plan in plans]}))
    return 0 if all(plan.fits for plan in plans) else DOES_NOT_FIT_EXIT_CODE
