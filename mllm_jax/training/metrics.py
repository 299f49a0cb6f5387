"""Where metrics go: `metrics.jsonl`, TensorBoard and the terminal; written by process 0 alone."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.checkpoint.layout import write_whole
from mllm_jax.training.progress import Progress

Values = Mapping[str, float]


class LoggingConfig(Config):
    every: int = Field(default=10, gt=0)
    """Steps from one line of metrics to the next; the first and the last step of a stage always have one."""
    tensorboard: bool = True
    """Write event files for TensorBoard into the run directory."""


def rewind_metrics(path: Path, earlier_stages: Collection[str], stage: str, step: int) -> None:
    """Removes the lines of steps that will be done again, so that no step is in the file twice.

    Args:
        path: of `metrics.jsonl`; it need not be there.
        earlier_stages: whose lines all stay.
        stage: whose lines stay up to and including `step`.
        step: the step that was restored.
    """
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _stays(line, earlier_stages, stage, step)]
    write_whole(path, "".join(line + "\n" for line in kept))


def _stays(line: str, earlier_stages: Collection[str], stage: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        # A process that was killed while it wrote leaves half a line at the end.
        return False
    return entry["stage"] in earlier_stages or (entry["stage"] == stage and entry["step"] <= step)


class MetricLog:
    """The metrics of one stage, to all places."""

    def __init__(self, run: Path, stage: str, progress: Progress, start: int, tensorboard: bool):
        """Goes on after step `start`; events of later steps in the TensorBoard files are declared void."""
        self._stage = stage
        self._progress = progress
        run.mkdir(parents=True, exist_ok=True)
        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = _open_board(run / "tensorboard" / stage, start) if tensorboard else None

    def write(self, step: int, values: Values) -> None:
        """Adds what was measured at `step`."""
        # JSON has no NaN; null is what a non-finite number becomes everywhere else.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"stage": self._stage, "step": step, **finite}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._progress.report(step, values)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _open_board(folder: Path, start: int) -> Any:
    # Imported here because tensorboardX imports torch where torch is installed, which takes seconds.
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1)


class NoMetricLog(MetricLog):
    """For processes that write nothing."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, values: Values) -> None:
        pass

    def close(self) -> None:
        pass
