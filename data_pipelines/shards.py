"""Writes tar shards in img2dataset's layout, byte for byte the same every time."""

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipelines.atomic_file import replace_file

_KEY_DIGITS = 4

TAR_END = bytes(2 * tarfile.BLOCKSIZE)
"""Closes a tar."""


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
        replace_file(tar, _members(batch, name))
        statistics = {"count": len(batch), "successes": len(batch), "failed_to_download": 0, "failed_to_resize": 0}
        replace_file(target / f"{name}_stats.json", [json.dumps(statistics).encode()])
        paths.append(tar)
    if not paths:
        raise ValueError(f"No sample was given, so {target} would hold no shard.")
    return tuple(paths)


def _members(batch: list[ImageText], shard: str) -> Iterator[bytes]:
    for index, sample in enumerate(batch):
        key = f"{shard}{index:0{_KEY_DIGITS}d}"
        described = {"caption": sample.caption, "key": key} | dict(sample.metadata)
        yield tar_member(f"{key}.{sample.extension}", sample.image)
        yield tar_member(f"{key}.txt", sample.caption.encode())
        yield tar_member(f"{key}.json", json.dumps(described, ensure_ascii=False, sort_keys=True).encode())
    yield TAR_END


def tar_member(name: str, data: bytes) -> bytes:
    """Returns a file of a tar: its header, its bytes and their padding."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + padding
