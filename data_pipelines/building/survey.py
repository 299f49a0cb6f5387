"""The first half of a build: which entries of a source are records, and why the others are none.

Only then is it known which records stand in which shard. Images are not read.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.atomic_file import replace_file
from data_pipelines.building.job import BuildConfig
from data_pipelines.quota import Skip
from data_pipelines.sources.source import Entry, Source
from data_pipelines.storage import Storage

UNIT_ENTRIES = 20_000
"""Entries that are looked at in one go, where a shard can be entered anywhere."""


class Unit(NamedTuple):
    """Entries that one process looks at."""

    number: int
    shard: int
    first: int
    """Place of the first."""
    entries: int | None
    """How many; None: to the end of the shard."""


def units_of(source: Source) -> list[Unit]:
    """Returns what the entries of a source are divided into, in order; it depends on the source alone."""
    parts: list[tuple[int, int, int | None]] = []
    for shard in range(len(source.shards)):
        count = source.count(shard)
        if count is None:
            parts.append((shard, 0, None))
        else:
            parts += [(shard, first, UNIT_ENTRIES) for first in range(0, count, UNIT_ENTRIES)]
    return [Unit(number, *part) for number, part in enumerate(parts)]


def open_survey(config: BuildConfig) -> Callable[[Unit], int]:
    """Opens the source, and returns what surveys a unit."""
    source, folder = config.source.open(Storage()), _folder(config)
    folder.mkdir(exist_ok=True)

    def survey(unit: Unit) -> int:
        good: list[int] = []
        skips: list[Skip] = []
        for entry in _entries(source, unit):
            found = source.read(entry)
            if isinstance(found, Skip):
                skips.append(found)
            else:
                good.append(entry.place)
        lines = (json.dumps(asdict(skip), ensure_ascii=False) + "\n" for skip in skips)
        replace_file(folder / f"{unit.number}.jsonl", [line.encode("utf-8", "backslashreplace") for line in lines])
        # Last: a unit with places is done.
        replace_file(_places(config, unit.number), [np.array(good, "<i8")])
        return unit.number

    return survey


def is_surveyed(config: BuildConfig, unit: Unit) -> bool:
    return _places(config, unit.number).exists()


def places_of(config: BuildConfig, number: int) -> np.ndarray:
    """Returns i64[records], the places of the records of a unit."""
    return np.fromfile(_places(config, number), "<i8")


def count_of(config: BuildConfig, number: int) -> int:
    """Returns how many records a unit has."""
    return _places(config, number).stat().st_size // 8


def skipped_lines(config: BuildConfig, units: int) -> Iterator[bytes]:
    """Yields a line of JSON for everything that was left out, in order of the units."""
    for number in range(units):
        with open(_folder(config) / f"{number}.jsonl", "rb") as lines:
            yield from lines


def causes_of(lines: Iterator[bytes]) -> dict[str, int]:
    """Returns how many lines there are of each cause, the most frequent first."""
    return dict(Counter(json.loads(line)["cause"] for line in lines).most_common())


def _entries(source: Source, unit: Unit) -> Iterator[Entry]:
    return islice(source.walk(unit.shard, unit.first), unit.entries)


def _folder(config: BuildConfig) -> Path:
    return config.work / "survey"


def _places(config: BuildConfig, number: int) -> Path:
    return _folder(config) / f"{number}.places"
