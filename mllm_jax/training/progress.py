"""A stage's progress on the terminal: a bar with the time left, or plain lines where there is no terminal."""

import math
import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SHOWN = (
    "loss",
    "validation_loss",
    "gradient_norm",
    "learning_rate",
    "images_per_second",
    "tokens_per_second",
    "mfu",
    "data_wait_share",
)
"""The metrics that the terminal shows; the files hold all of them."""


class Progress(Protocol):
    """Shows where a stage stands."""

    def report(self, step: int, values: Mapping[str, float]) -> None: ...

    def advance(self, step: int) -> None: ...

    def close(self) -> None: ...


def describe(values: Mapping[str, float]) -> str:
    """`loss 2.31  tokens/s 1,234` for the metrics that are shown."""
    return "  ".join(
        f"{name.replace('_per_second', '/s').replace('_', ' ')} {short(values[name])}"
        for name in SHOWN
        if name in values
    )


def short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class BarProgress:
    """A bar with step counts, time left and the last metrics."""

    def __init__(self, console: Console, stage: str, start: int, steps: int):
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
        )
        self._task = self._bar.add_task(stage, total=steps, completed=start, values="compiling ...")
        self._bar.start()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        if "validation_loss" in values:
            self._bar.console.print(f"step {step}: validation loss {values['validation_loss']:.4f}", highlight=False)
        else:
            self._bar.update(self._task, values=describe(values))

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def close(self) -> None:
        self._bar.stop()


class LineProgress:
    """One line for every report."""

    def __init__(self, console: Console, stage: str, start: int, steps: int):
        self._console, self._stage, self._start, self._steps = console, stage, start, steps
        self._began: float | None = None
        self._first = start

    def report(self, step: int, values: Mapping[str, float]) -> None:
        line = f"{self._stage} {step}/{self._steps}  {describe(values)}"
        self._console.print(line + self._time_left(step), highlight=False, soft_wrap=True)

    def _time_left(self, step: int) -> str:
        if self._began is None or step <= self._first:
            return ""
        pace = (time.monotonic() - self._began) / (step - self._first)
        return f"  left {duration(pace * (self._steps - step))}"

    def advance(self, step: int) -> None:
        if self._began is None:
            # The first step compiles; the pace is that of the steps after it.
            self._began, self._first = time.monotonic(), step

    def close(self) -> None:
        pass


class NoProgress:
    """For processes that show nothing."""

    def report(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def make_progress(console: Console | None, stage: str, start: int, steps: int) -> Progress:
    """What suits the console; None shows nothing."""
    if console is None:
        return NoProgress()
    return (BarProgress if console.is_terminal else LineProgress)(console, stage, start, steps)
