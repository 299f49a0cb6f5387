"""The table of what trains in a stage, and what it takes in memory."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.table import Table

from mllm_jax.models.kernel_choices import PartKernel
from mllm_jax.models.layers.quantised import stored_bytes
from mllm_jax.models.quantised_kernels import STEPS
from mllm_jax.training.state import TrainState


class GroupSummary(NamedTuple):
    """One part of the model that trains, or one that does not."""

    group: str
    """First name of the parameters' paths."""
    trains: bool
    parameters: int
    parameter_bytes: int
    """Over all devices together."""
    optimizer_bytes: int
    """Likewise; 0 for frozen parameters."""


def summarise(state: TrainState, optimizer: optax.GradientTransformation) -> list[GroupSummary]:
    """What trains and what does not, from a state that may be abstract; every parameter is in one group."""
    rows: list[GroupSummary] = []
    for trains, tree in ((True, state.trainable), (False, state.frozen)):
        groups: dict[str, dict[str, Any]] = defaultdict(dict)
        for path, leaf in flatten_dict(tree, sep="/").items():
            groups[path.split("/", 1)[0]][path] = leaf
        for group, leaves in groups.items():
            moments = jax.eval_shape(optimizer.init, unflatten_dict(leaves, sep="/")) if trains else {}
            # The steps of a quantised kernel take memory, but they are no parameters of the model.
            count = sum(math.prod(leaf.shape) for path, leaf in leaves.items() if not path.endswith(STEPS))
            rows.append(GroupSummary(group, trains, count, _bytes(leaves), _bytes(moments)))
    return sorted(rows)


def _bytes(tree: Any) -> int:
    return sum(stored_bytes(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))


def summary_table(rows: list[GroupSummary], title: str) -> Table:
    """The summary as a table for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("trains")
    for name in ("parameters", "memory", "optimizer"):
        table.add_column(name, justify="right")
    for row in rows:
        trains = "yes" if row.trains else "no"
        table.add_row(row.group, trains, f"{row.parameters:,}", size(row.parameter_bytes), size(row.optimizer_bytes))
    table.add_section()
    table.add_row(
        "all",
        "",
        f"{sum(row.parameters for row in rows):,}",
        size(sum(row.parameter_bytes for row in rows)),
        size(sum(row.optimizer_bytes for row in rows)),
    )
    return table


def kernel_table(rows: Sequence[PartKernel]) -> Table:
    """By what each part attends, as a table for the terminal."""
    table = Table()
    for name in ("part", "attention", "because", "recomputed in the backward pass"):
        table.add_column(name)
    for row in rows:
        table.add_row(row.part, row.choice.kernel, row.choice.reason, row.remat or "none")
    return table


def size(count: int) -> str:
    """Bytes as a person writes them: `1.4 GB` (powers of 1000)."""
    scaled, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 999.5:
            break
        scaled, unit = scaled / 1000, larger
    return f"{scaled:.0f} B" if unit == "B" else f"{scaled:.3g} {unit}"
