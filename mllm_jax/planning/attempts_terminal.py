"""What sweeps and searches show in the terminal."""

from collections.abc import Sequence

from rich.table import Table

from mllm_jax.planning.stage_plan import StagePlan
from mllm_jax.planning.sweep import Attempt
from mllm_jax.training.summary import size


def attempts_table(title: str, attempts: Sequence[Attempt], marked: Sequence[Attempt] = ()) -> Table:
    """One line an attempt and stage, and a column a key; those that are marked begin with a star."""
    table = Table(title=title, title_justify="left")
    columns = _columns(list(dict.fromkeys(key for each in attempts for key in each.changes)))
    table.add_column("")
    for name in columns:
        table.add_column(name, overflow="fold")
    table.add_column("stage")
    for name in ("memory", "ms a step", "MFU", "tokens a day"):
        table.add_column(name, justify="right")
    for each in attempts:
        changed = [each.changes.get(columns[name], "").strip("{}") for name in columns]
        for plan in each.plans:
            table.add_row("*" if each in marked else "", *changed, plan.stage.name, *_numbers(plan))
    return table


def _columns(keys: Sequence[str]) -> dict[str, str]:
    """By the name of a column, its key; the same key of several stages has the same values, and one column."""
    columns: dict[str, str] = {}
    for key in keys:
        first, _, last = key.rpartition(".")
        name = last if last not in columns or first.startswith("stages.") else key
        columns.setdefault(name, key)
    return columns


def _numbers(plan: StagePlan) -> tuple[str, str, str, str]:
    held = "-" if plan.memory is None else size(int(plan.memory.peak))
    if plan.failure is not None and plan.failure.needed is not None:
        held = size(int(plan.failure.needed))
    return (
        held if plan.fits else f"{held}, too much",
        "-" if plan.predicted is None else f"{1e3 * plan.predicted:,.1f}",
        "-" if plan.mfu is None else f"{plan.mfu:.3f}",
        "-" if plan.feed is None else f"{plan.feed.tokens_per_day:.3g}",
    )


def written(attempt: Attempt) -> list[str]:
    """What an attempt changes, as on the command line."""
    return [f"{key}={value}" for key, value in attempt.changes.items()]
