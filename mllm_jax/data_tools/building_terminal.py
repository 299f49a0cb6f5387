"""What the verbs that prepare data show in the terminal."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, TaskID

from data_pipelines.building.build import SKIPPED, build
from data_pipelines.building.job import BuildConfig
from data_pipelines.indexing import index_shards
from data_pipelines.sources.choice import SourceConfig
from data_pipelines.sources.shard_list import expand
from data_pipelines.storage import Storage, StorageConfig

Each = TypeVar("Each")


def show_indexing(shards: list[str], cache: str | None, threads: int, storage: Storage | None = None) -> int:
    """Indexes shards with a progress line and prints which of them are broken; returns 1 if any is."""
    console, made, samples, broken = Console(), 0, 0, 0
    total = len(expand(tuple(shards)))
    for report in _with_progress(console, "shards", index_shards(shards, cache, threads, storage), total):
        made, samples = made + report.made, samples + report.samples
        if report.replaced is not None:
            _tell(console, f"made again: {report.replaced}")
        if report.lost is not None:
            broken += 1
            _tell(console, f"{report.lost.key}: {report.lost.cause}: {report.lost.detail}; what follows is lost")
    told = f"{total} shards with {samples} samples: {made} indexed, {total - made} were already"
    print(told + (f"; {broken} of them break off" if broken else ""))
    return 1 if broken else 0


def show_build(
    source: SourceConfig, output: str, samples_per_shard: int, processes: int, storage: StorageConfig
) -> None:
    """Builds with progress lines and prints what there is now, what was left out, and how to train on it."""
    if samples_per_shard < 1 or processes < 1:
        raise ValueError("--samples-per-shard and --processes are at least 1")
    config = BuildConfig(source=source, output=output, samples_per_shard=samples_per_shard, storage=storage)
    console = Console()
    with Progress(console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        built = build(config, processes, show)
    there = " (all of it was there already)" if built.was_there else ""
    print(f"{output}: {built.records} records in {built.shards} shards{there}")
    if built.skipped:
        causes = ", ".join(f"{cause} {count}" for cause, count in built.skipped.items())
        print(f"left out {sum(built.skipped.values())}: {causes}; each with its key in {Path(output, SKIPPED)}")
    print(f"in a run file: {{kind: records, shards: {Path(output, '*.tar')}}}")


def _with_progress(console: Console, name: str, things: Iterable[Each], total: int) -> Iterator[Each]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=total)
        for each in things:
            yield each
            progress.advance(task)


def _tell(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
