"""What sweeps and searches show in the terminal."""

from collections.abc import Sequence

from rich.table import Table

from mllm_jax.planning.sweep import Attempt
from mllm_jax.training.summary import size


def attempts_table(title: str, attempts: Sequence[Attempt], marked: Sequence[Attempt] = ()) -> Table:
    """One line an attempt and stage; those that are marked begin with a star."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("changed", overflow="fold")
    table.add_column("stage")
    for name in ("memory", "ms a step", "MFU", "tokens a day"):
        table.add_column(name, justify="right")
    for each in attempts:
        star = "*" if each in marked else ""
        changed = "\n".join(written(each))
        for plan in each.plans:
            held = "" if plan.memory is None else size(int(plan.memory.peak))
            if plan.failure is not None and plan.failure.needed is not None:
                held = size(int(plan.failure.needed))
            held += "" if plan.fits else ", too much"
            step = "-" if plan.predicted is None else f"{1e3 * plan.predicted:,.1f}"
            share = "-" if plan.mfu is None else f"{plan.mfu:.3f}"
            tokens = "-" if plan.feed is None else f"{plan.feed.tokens_per_day:.3g}"
            table.add_row(star, changed, plan.stage.name, held, step, share, tokens)
    return table


def written(attempt: Attempt) -> list[str]:
    """What an attempt changes, as on the command line."""
    return [f"{key}={value}" for key, value in attempt.changes.items()]
