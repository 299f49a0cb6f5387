"""What `mllm data verify` shows in the terminal."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import Progress

from data_pipelines.storage import Storage
from data_pipelines.verification import ShardReport, read_reports, shards_of, verify


def show_verification(
    inputs: list[str], images: str | None, threads: int, report: str | None, storage: Storage | None = None
) -> int:
    """Verifies shards with a progress line and prints what is wrong with them; returns 1 if anything is."""
    console, broken, good, causes = Console(), 0, 0, Counter[str]()
    known = read_reports(report) if report else []
    total = len(shards_of(inputs))
    with contextlib.ExitStack() as exits:
        lines = exits.enter_context(_appended(report)) if report else None
        progress = exits.enter_context(Progress(console=console, transient=True))
        task = progress.add_task("shards", total=total)
        for each in verify(inputs, images, threads, known, storage=storage):
            if lines is not None and each not in known:
                lines.write(json.dumps(each.to_json(), ensure_ascii=False) + "\n")
                lines.flush()
            good, causes = good + each.records, causes + Counter(each.causes())
            if not each.whole:
                broken += 1
                progress.console.print(_fault(each), markup=False, highlight=False, soft_wrap=True)
            progress.advance(task)
    skipped = "".join(f"; {cause} {count}" for cause, count in causes.most_common())
    print(f"{total} shards, {broken} of them with faults: {good} good records{skipped}")
    return 1 if broken else 0


@contextlib.contextmanager
def _appended(path: str) -> Iterator[TextIO]:
    """A file of lines to add to; a line that was cut short is ended first."""
    with open(path, "a+", encoding="utf-8") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read(1) not in ("", "\n"):
            file.write("\n")
        yield file


def _fault(report: ShardReport) -> str:
    """A shard's faults in a line: how many of each cause, and the first of them."""
    said = [f"{report.path}: {report.records} good records"]
    if report.stated not in (None, report.records + len(report.skips)):
        said.append(f"its statistics state {report.stated}")
    if report.unfinished:
        said.append(f"no {Path(report.path).stem}_stats.json, which others beside it have: its writer did not end")
    said += [] if report.changed is None else [report.changed]
    said += [f"{cause} {count}" for cause, count in report.causes().items()]
    said += [f"first {skip.key} ({skip.detail})" for skip in report.skips[:1]]
    return "; ".join(said)
