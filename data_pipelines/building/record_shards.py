"""The second half of a build: shards of records, each with its index and what is to be known of it."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipelines.atomic_file import replace_file
from data_pipelines.building.job import BuildConfig
from data_pipelines.building.manifest import read_json
from data_pipelines.building.survey import count_of, places_of
from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.shards import TAR_END, tar_member
from data_pipelines.sources.record_json import members_of
from data_pipelines.sources.source import Source
from data_pipelines.sources.tar_index_files import make_index
from data_pipelines.storage import Storage


class Layout:
    """Which records stand in which shard: those of all units in order, `samples_per_shard` in each."""

    def __init__(self, config: BuildConfig, shard_of_unit: list[int]) -> None:
        """
        Args:
            shard_of_unit: the source's shard that each unit is of.
        """
        self._config = config
        self._shards = shard_of_unit
        self.units = len(shard_of_unit)
        self._ends = list(accumulate(count_of(config, number) for number in range(self.units)))

    @property
    def records(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def names(self) -> list[str]:
        """Of the shards, without their folder."""
        shards = -(-self.records // self._config.samples_per_shard)
        return [f"{number:05d}" for number in range(shards)]

    def places(self, number: int) -> Iterator[tuple[int, int]]:
        """Yields (shard of the source, place) of each record of a shard."""
        size = self._config.samples_per_shard
        first, last = number * size, min((number + 1) * size, self.records)
        unit = bisect_right(self._ends, first)
        while first < last:
            end = min(last, self._ends[unit])
            begin = self._ends[unit - 1] if unit else 0
            for place in places_of(self._config, unit)[first - begin : end - begin].tolist():
                yield self._shards[unit], place
            first, unit = end, unit + 1


def statistics_path(tar: Path) -> Path:
    """Where the number of records of a shard stands, and its checksum: written last, so it says that all is there."""
    return tar.with_name(f"{tar.stem}_stats.json")


def finished(tar: Path) -> dict[str, Any] | None:
    """Returns what is known of a shard that is whole, or None."""
    found: dict[str, Any] | None = read_json(statistics_path(tar))
    return found if found is not None and tar.exists() and tar.stat().st_size == found["bytes"] else None


def open_writer(config: BuildConfig, layout: Layout) -> Callable[[int], int]:
    """Opens the source, and returns what writes the shard of a number."""
    storage = Storage(config.storage)
    source, names = config.source.open(storage), layout.names

    def write(number: int) -> int:
        tar = Path(config.output, f"{names[number]}.tar")
        statistics = _Counted()
        replace_file(tar, statistics.counted(_members(config, layout, source, storage, number)))
        make_index(str(tar), None, Storage())
        replace_file(statistics_path(tar), [json.dumps(statistics.told()).encode()])
        return number

    return write


class _Counted:
    """Counts and digests what goes through."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._records = 0

    def counted(self, samples: Iterator[bytes]) -> Iterator[bytes]:
        for sample in samples:
            self._digest.update(sample)
            self._bytes += len(sample)
            self._records += 1
            yield sample
        self._digest.update(TAR_END)
        self._bytes += len(TAR_END)
        yield TAR_END

    def told(self) -> dict[str, Any]:
        counts = {"count": self._records, "successes": self._records}
        return counts | {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def _members(config: BuildConfig, layout: Layout, source: Source, storage: Storage, number: int) -> Iterator[bytes]:
    """Yields the bytes of each record of a shard."""
    digits = max(4, len(str(config.samples_per_shard - 1)))
    for index, (shard, place) in enumerate(layout.places(number)):
        record = source.read(source.locate(shard, place))
        if isinstance(record, Skip):
            raise ValueError(f"{record.key} was a record before and is none now ({record.cause}): the data changed")
        key = f"{number:05d}{index:0{digits}d}"
        yield b"".join(tar_member(f"{key}.{name}", data) for name, data in _read(record, storage))


def _read(record: Record, storage: Storage) -> Iterator[tuple[str, bytes]]:
    try:
        yield from members_of(record, storage.read_image)
    except OSError as error:
        raise OSError(f"{record.key}: {error}") from error
