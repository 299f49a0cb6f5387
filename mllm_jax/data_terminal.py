"""What the verbs that prepare data show in the terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from data_pipelines.indexing import index_shards
from data_pipelines.sources.shard_list import expand

Each = TypeVar("Each")


def show_indexing(shards: list[str], cache: str | None, threads: int) -> int:
    """Indexes shards with a progress line and prints which of them are broken; returns 1 if any is."""
    console, made, samples, broken = Console(), 0, 0, 0
    total = len(expand(tuple(shards)))
    for report in _with_progress(console, "shards", index_shards(shards, cache, threads), total):
        made, samples = made + report.made, samples + report.samples
        if report.replaced is not None:
            _tell(console, f"made again: {report.replaced}")
        if report.lost is not None:
            broken += 1
            _tell(console, f"{report.lost.key}: {report.lost.cause}: {report.lost.detail}; what follows is lost")
    told = f"{total} shards with {samples} samples: {made} indexed, {total - made} were already"
    print(told + (f"; {broken} of them break off" if broken else ""))
    return 1 if broken else 0


def _with_progress(console: Console, name: str, things: Iterable[Each], total: int) -> Iterator[Each]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=total)
        for each in things:
            yield each
            progress.advance(task)


def _tell(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
