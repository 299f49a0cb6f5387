"""Reads whole data sets to find what a run would skip: every record, and every image of it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.building.manifest import Checksums, listed_shards
from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart, Record
from data_pipelines.sources.choice import source_of_path
from data_pipelines.sources.llava_blend import BLENDS, read_blend
from data_pipelines.sources.shard_list import expand
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage, is_local
from data_pipelines.threads import in_threads
from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.transforms.image_error import ImageError

_STATISTICS = "_stats.json"


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a verification found in one shard."""

    path: str
    size: int
    """Bytes of the file when it was read; of a blend, with those of the files that it names."""
    records: int
    """Those that are good."""
    skips: tuple[Skip, ...]
    stated: int | None
    """Samples that `NAME_stats.json` states; None without one, as a JSON file always is."""
    unfinished: bool = False
    """A tar without statistics beside others that have them: they are written last, so its writer did not end."""
    changed: str | None = None
    """Why it is not the shard that the manifest beside it lists."""

    @property
    def whole(self) -> bool:
        """Whether nothing is bad, its writer ended, and count and checksum are the stated ones, where they are."""
        as_written = not self.unfinished and self.changed is None
        return not self.skips and as_written and self.stated in (None, self.records)

    def causes(self) -> dict[str, int]:
        return dict(Counter(skip.cause for skip in self.skips))

    def to_json(self) -> dict[str, Any]:
        """The line of a report file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ShardReport":
        return cls(**value | {"skips": tuple(Skip(**skip) for skip in value["skips"])})


def decode_whole(data: bytes) -> np.ndarray:
    """Decodes an image whole, and then makes it small; raises ImageError."""
    return decode_image(data, ImageTransformConfig(size=(16, 16)))


def verify(
    paths: Sequence[str],
    images: str | None = None,
    threads: int = 2,
    known: Collection[ShardReport] = (),
    decode: Callable[[bytes], np.ndarray] = decode_whole,
    storage: Storage | None = None,
) -> Iterator[ShardReport]:
    """Yields a report of every shard, in their order.

    Args:
        paths: see `shards_of`.
        images: image folder of JSON files.
        threads: that read and decode, each one shard at a time.
        known: reports of shards that were read before; one of the same path and size is given again.
        decode: raises ImageError for a bad image.
        storage: what reads; None: one of the defaults.

    Raises:
        FileNotFoundError: a pattern names no shard.
    """
    reading, checksums, by_path = storage or Storage(), Checksums(), {report.path: report for report in known}

    def report_of(path: str) -> ShardReport:
        before = by_path.get(path)
        unchanged = before is not None and before.size == _size(path, reading)
        return before if before is not None and unchanged else verify_shard(path, images, decode, reading, checksums)

    yield from in_threads(report_of, shards_of(paths), threads)


def shards_of(paths: Sequence[str]) -> tuple[str, ...]:
    """Returns the shards or files of conversations that are meant: globs and brace ranges are expanded.

    Of a folder they are those that its manifest lists, or all its tars.

    Raises:
        FileNotFoundError: a pattern names no shard, or a shard that a manifest lists is not there.
    """
    patterns: list[str] = []
    for path in paths:
        listed = listed_shards(Path(path)) if os.path.isdir(path) else {}
        patterns += [os.path.join(path, name) for name in listed or ["*.tar"]] if os.path.isdir(path) else [path]
    return expand(tuple(patterns))


def verify_shard(
    path: str | Path,
    images: str | None = None,
    decode: Callable[[bytes], np.ndarray] = decode_whole,
    storage: Storage | None = None,
    checksums: Checksums | None = None,
) -> ShardReport:
    """Reads every record of one shard and decodes every image of it; arguments as for `verify`."""
    storage, good, skips = storage or Storage(), 0, []
    source = source_of_path(str(path), images, storage).open(storage)
    for record in records(source):
        fault = record if isinstance(record, Skip) else _undecodable(record, decode, storage)
        if fault is None:
            good += 1
        else:
            skips.append(fault)
    stated = _stated(Path(path))
    unfinished = stated is None and Path(path).suffix == ".tar" and _beside_statistics(Path(path))
    changed = (checksums or Checksums()).fault(Path(path)) if is_local(str(path)) else None
    return ShardReport(str(path), _size(str(path), storage), good, tuple(skips), stated, unfinished, changed)


def read_reports(file: str | Path) -> list[ShardReport]:
    """Reports that were written before, of a shard's the last; one that was cut short is left out."""
    found = []
    if os.path.exists(file):
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            try:
                found.append(ShardReport.from_json(json.loads(line)))
            except (ValueError, TypeError, KeyError):
                continue
    return found


def _undecodable(record: Record, decode: Callable[[bytes], np.ndarray], storage: Storage) -> Skip | None:
    for part in (part for turn in record.turns for part in turn.parts):
        if isinstance(part, ImagePart):
            try:
                decode(storage.read_image(part.source))
            except ImageError as error:
                return Skip(f"image_{error.cause}", record.key, error.detail)
    return None


def _size(path: str, storage: Storage) -> int:
    blended = [part.path for part in read_blend(path, None)] if path.endswith(BLENDS) else []
    return sum(storage.size(each) for each in {path, *blended})


def _beside_statistics(path: Path) -> bool:
    return next(path.parent.glob(f"*{_STATISTICS}"), None) is not None


def _stated(path: Path) -> int | None:
    statistics = path.with_name(path.stem + _STATISTICS)
    try:
        stated = json.loads(statistics.read_text())["successes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stated if isinstance(stated, int) else None
