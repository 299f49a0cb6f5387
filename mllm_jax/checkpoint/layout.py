"""Where things stand in a run directory.

`RUN/{run.yaml, metrics.jsonl, tensorboard/}` and `RUN/stages/<index>_<name>/{frozen, checkpoints/<step>, done.json}`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

RUN_FILE = "run.yaml"
"""The complete run file."""

OBJECTIVE = "objective"
"""The branch of a stage's parameters that its objective owns: no part of the model, and not left to anyone else."""

_STAGE_FOLDER = re.compile(r"\d+_.+")


def stage_folder(run: Path, index: int, name: str) -> Path:
    """The folder of the stage at place `index` (from 0) of the run file's list."""
    return run / "stages" / f"{index}_{name}"


def stage_folders(run: Path) -> list[Path]:
    """The folders of the stages that have begun, in their order."""
    found = [path for path in (run / "stages").glob("*") if path.is_dir() and _STAGE_FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("_", 1)[0]))


def frozen_folder(stage: Path) -> Path:
    return stage / "frozen"


def checkpoints_folder(stage: Path) -> Path:
    return stage / "checkpoints"


def is_done(stage: Path) -> bool:
    """Whether the stage has run to its end and its last checkpoint is whole."""
    return (stage / "done.json").is_file()


def mark_done(stage: Path, facts: dict[str, Any]) -> None:
    """Writes the stage's mark, whole or not at all; the last thing that happens to a stage."""
    write_whole(stage / "done.json", json.dumps(facts, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a small text file so that it is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
