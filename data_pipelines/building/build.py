"""Builds: a source is surveyed, its records are written, and a manifest says that it is done.

The bytes of the shards depend on the source and on the number of records in each, not on the processes, nor on how
often the build was stopped: a survey of a unit and a shard are there whole or are made again.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.atomic_file import replace_file
from data_pipelines.building.job import BuildConfig, claimed, described
from data_pipelines.building.manifest import MANIFEST
from data_pipelines.building.processes import in_processes
from data_pipelines.building.record_shards import Layout, finished, open_writer
from data_pipelines.building.survey import causes_of, is_surveyed, open_survey, skipped_lines, units_of
from data_pipelines.indexing import index_shards
from data_pipelines.sources.source import Source
from data_pipelines.storage import Storage

SKIPPED = "skipped.jsonl"
"""A line for everything that was left out: its cause, its key and what is wrong with it."""

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a folder of shards holds."""

    records: int
    shards: int
    skipped: dict[str, int]
    """How many were left out, by cause."""
    was_there: bool
    """Whether nothing was left to do."""


def build(config: BuildConfig, processes: int = 1, progress: Progress = lambda what, done, total: None) -> Built:
    """Writes the records of a source as indexed shards; what an earlier start finished is kept.

    Raises:
        FileNotFoundError: the source names files that are not there.
        ValueError: the source has no record, or the folder holds something else.
        OSError: something cannot be read or written.
    """
    source = config.source.open(Storage(config.storage))
    with claimed(config, source) as manifest:
        if manifest is None:
            _survey(config, source, processes, progress)
            layout = Layout(config, [unit.shard for unit in units_of(source)])
            _write(config, layout, processes, progress)
            written = _finish(config, source, layout)
        shutil.rmtree(config.work, ignore_errors=True)
    found = manifest or written
    return Built(found["records"], len(found["shards"]), found["skipped"], manifest is not None)


def _survey(config: BuildConfig, source: Source, processes: int, progress: Progress) -> None:
    units = units_of(source)
    left = [unit for unit in units if not is_surveyed(config, unit)]
    _follow("reading", progress, len(units), left, in_processes(partial(open_survey, config), left, processes))


def _write(config: BuildConfig, layout: Layout, processes: int, progress: Progress) -> None:
    names = layout.names
    if not names:
        causes = causes_of(skipped_lines(config, layout.units))
        told = ", ".join(f"{cause} {count}" for cause, count in causes.items()) or "it is empty"
        raise ValueError(f"the source has no record that can be used: {told}")
    left = [number for number, name in enumerate(names) if finished(Path(config.output, f"{name}.tar")) is None]
    _follow("writing", progress, len(names), left, in_processes(partial(open_writer, config, layout), left, processes))


def _follow(what: str, progress: Progress, total: int, left: Sized, results: Iterable[int]) -> None:
    there = total - len(left)
    progress(what, there, total)
    for made, _ in enumerate(results, start=1):
        progress(what, there + made, total)


def _finish(config: BuildConfig, source: Source, layout: Layout) -> dict[str, Any]:
    """Writes the report and, last, the manifest."""
    output, shards = Path(config.output), []
    for name in layout.names:
        known = finished(output / f"{name}.tar")
        if known is None:
            raise OSError(f"{output / name}.tar was removed or changed while the build went on; start it again")
        shards.append(
            {"name": f"{name}.tar", "records": known["successes"]} | {k: known[k] for k in ("bytes", "sha256")}
        )
    # A process that outlived a build that was killed may have put the same bytes in the place of a shard again.
    for _ in index_shards([str(output / shard["name"]) for shard in shards]):
        pass
    replace_file(output / SKIPPED, skipped_lines(config, layout.units))
    with open(output / SKIPPED, "rb") as lines:
        causes = causes_of(lines)
    manifest = {"records": layout.records, "skipped": causes, "shards": shards, "job": described(config, source)}
    replace_file(output / MANIFEST, [json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n"])
    return manifest
