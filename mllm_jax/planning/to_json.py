"""A plan as JSON."""

from dataclasses import asdict
from typing import Any

from mllm_jax.planning.stage_plan import REAL_OVER_PREDICTED, StagePlan
from mllm_jax.planning.terminal import time_terms, warnings


def plan_json(plan: StagePlan) -> dict[str, Any]:
    """Bytes, FLOPs and seconds of one device and one step, where a name says nothing else."""
    memory, cost, failure = plan.memory, plan.cost, plan.failure
    return {
        "stage": plan.stage.name,
        "topology": plan.topology.name,
        "devices": plan.topology.size,
        "hosts": plan.topology.hosts,
        "mesh": dict(plan.mesh),
        "rows": plan.stage.rows,
        "row_length": plan.stage.row_length,
        "images_per_row": plan.stage.images_per_row,
        "accumulate": plan.stage.accumulate,
        "fits": plan.fits,
        "compile_seconds": plan.compile_seconds,
        "state_bytes": dict(plan.state),
        "memory": None if memory is None else _memory(memory),
        "out_of_memory": None
        if failure is None
        else {
            "needed": failure.needed,
            "available": failure.available,
            "buffers": [buffer._asdict() for buffer in failure.buffers],
        },
        "model_flops": plan.model_flops,
        "executed": None if cost is None else _executed(cost),
        "collectives": [] if cost is None else [asdict(use) for use in cost.collectives.values()],
        "step_seconds": {
            "predicted": plan.predicted,
            "expected": plan.expected,
            "expected_over_predicted": REAL_OVER_PREDICTED if plan.predicted else None,
            "terms": dict(time_terms(plan)) if plan.predicted else {},
        },
        "mfu": {"predicted": plan.mfu, "expected": plan.expected_mfu},
        "feed": None if plan.feed is None else plan.feed._asdict(),
        "bill": None if plan.bill is None else plan.bill._asdict(),
        "replicated": [each._asdict() for each in plan.replicated],
        "warnings": warnings(plan),
    }


def _memory(memory: Any) -> dict[str, Any]:
    names = ("arguments", "temporaries", "outputs", "code", "peak", "allocated", "capacity")
    return {name: getattr(memory, name) for name in names}


def _executed(cost: Any) -> dict[str, Any]:
    return {
        "flops": dict(cost.flops),
        "recomputed_flops": cost.again,
        "kernel_flops": dict(cost.kernel_flops),
        "bytes": cost.bytes,
        "host_bytes": cost.host_bytes,
    }
