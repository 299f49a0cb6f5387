"""Writes tar shards in img2dataset's layout, byte for byte the same every time, and verifies shards."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart
from data_pipelines.sources.source import records
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from data_pipelines.transforms.image_error import ImageError

_KEY_DIGITS = 4


@dataclass(frozen=True, slots=True)
class ImageText:
    """One sample to write."""

    image: bytes
    """Encoded."""
    caption: str
    extension: str = "jpg"
    """Of the image member: jpg, png or webp."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the JSON member, which holds `caption` and `key` besides."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a verification found in one shard."""

    path: str
    records: int
    skips: tuple[Skip, ...]
    stated: int | None
    """Samples that `NAME_stats.json` states; None without one, and then the shard may be incomplete."""

    @property
    def whole(self) -> bool:
        """Whether nothing is bad and the count is the stated one."""
        return not self.skips and self.stated == self.records

    def causes(self) -> dict[str, int]:
        return dict(Counter(skip.cause for skip in self.skips))


def write_shards(samples: Iterable[ImageText], folder: str | Path, samples_per_shard: int = 1000) -> tuple[Path, ...]:
    """Writes `00000.tar`, `00000_stats.json`, `00001.tar`, ... and returns the tars.

    A shard appears whole or not at all, and its statistics after it, so that a shard without them is not complete.

    Raises:
        ValueError: there is no sample.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    iterator = iter(samples)
    paths: list[Path] = []
    while batch := list(islice(iterator, samples_per_shard)):
        name = f"{len(paths):05d}"
        tar = target / f"{name}.tar"
        _replace(tar, b"".join(_members(batch, name)))
        statistics = {"count": len(batch), "successes": len(batch), "failed_to_download": 0, "failed_to_resize": 0}
        _replace(target / f"{name}_stats.json", json.dumps(statistics).encode())
        paths.append(tar)
    if not paths:
        raise ValueError(f"No sample was given, so {target} would hold no shard.")
    return tuple(paths)


def verify_shard(
    path: str | Path,
    decode: Callable[[bytes], np.ndarray] | None = None,
    storage: Storage | None = None,
    caption: str = "txt",
) -> ShardReport:
    """Reads every record of a shard, and decodes every image if `decode` is given."""
    store = storage or Storage()
    source = WebDatasetConfig(shards=str(path), caption=caption).open(store)
    good, skips = 0, []
    for record in records(source):
        fault = record if isinstance(record, Skip) else None
        if fault is None and decode is not None and not isinstance(record, Skip):
            images = [part for turn in record.turns for part in turn.parts if isinstance(part, ImagePart)]
            fault = _undecodable(images, record.key, decode, store)
        if fault is None:
            good += 1
        else:
            skips.append(fault)
    return ShardReport(str(path), good, tuple(skips), _stated(Path(path)))


def _members(batch: list[ImageText], shard: str) -> Iterator[bytes]:
    for index, sample in enumerate(batch):
        key = f"{shard}{index:0{_KEY_DIGITS}d}"
        described = {"caption": sample.caption, "key": key} | dict(sample.metadata)
        yield _member(f"{key}.{sample.extension}", sample.image)
        yield _member(f"{key}.txt", sample.caption.encode())
        yield _member(f"{key}.json", json.dumps(described, ensure_ascii=False, sort_keys=True).encode())
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + padding


def _undecodable(
    images: list[ImagePart], key: str, decode: Callable[[bytes], np.ndarray], storage: Storage
) -> Skip | None:
    for image in images:
        try:
            decode(storage.read_range(image.source))
        except ImageError as error:
            return Skip(f"image_{error.cause}", key, error.detail)
    return None


def _stated(path: Path) -> int | None:
    statistics = path.with_name(f"{path.stem}_stats.json")
    try:
        stated = json.loads(statistics.read_text())["successes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stated if isinstance(stated, int) else None


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
