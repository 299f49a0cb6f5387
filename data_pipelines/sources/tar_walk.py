"""Sources whose records are samples of tars: members that share a key, found by their headers or through an index.

A place is the byte at which a sample begins, with an index and without one, so a run may go on although an index was
made or lost meanwhile: the entries and their order are the same. The index saves the walk over the headers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.sources.source import Entry
from data_pipelines.sources.tar_headers import READ_AHEAD, Break, padded
from data_pipelines.sources.tar_index import TarIndex
from data_pipelines.sources.tar_index_files import IndexUse, ShardIndexes
from data_pipelines.sources.tar_samples import TarSample, samples
from data_pipelines.sources.walk_cache import WalkCache
from data_pipelines.storage import ReadAt, Storage

_ROWS_AT_ONCE = 256
_AT_HAND_LIMIT = 1024
"""Bytes of a member that an entry may hold until its record is read."""

AtHand = Callable[[int, int], bytes | None]
"""(offset, size) -> the bytes of a member, or None where they must be read."""


class TarShardsConfig(Config):
    """Which tars, and where their indexes are; each kind of sample has a `kind` besides."""

    shards: str | tuple[str, ...]
    """Brace ranges (`train/{00000..00099}.tar`), globs or a list; local paths or any fsspec address."""
    index: IndexUse = "auto"
    """Whether the indexes that `mllm data index` makes are used: where there are some, never, or else nothing starts.
    They change no record and no order."""
    index_cache: str | None = None
    """Folder of the indexes, as given to `mllm data index --cache`; null: beside the shards."""


UNTOLD = frozenset({"shards", "index", "index_cache"})
"""What a fingerprint leaves out of a config: the shards are told by their identity, and indexes change nothing."""


class TarWalk(ABC):
    """The entries of tar shards; what a sample must hold and what its record is, each kind says."""

    def __init__(
        self, shards: tuple[str, ...], storage: Storage, index: IndexUse = "auto", index_cache: str | None = None
    ) -> None:
        """
        Raises:
            IndexUnusableError: an index is required and is not there.
        """
        self.shards = shards
        self._storage = storage
        self._indexes = ShardIndexes(shards, index, index_cache, storage)
        self._walks = WalkCache()

    def count(self, shard: int) -> int | None:
        return None

    def entries(self, shard: int) -> int | None:
        index = self._indexes.of(shard)
        return None if index is None else self._kept(index, shard) + (index.broken is not None)

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        index = self._indexes.of(shard)
        if index is None:
            return self._walks.walk(shard, place, self._walk_headers)
        return self._walk_index(index, shard, place)

    def locate(self, shard: int, place: int) -> Entry:
        entry = next(self.walk(shard, place), None)
        if entry is None:
            raise ValueError(f"{self.shards[shard]} holds nothing at byte {place} any more: the shard was rewritten.")
        return entry

    def read(self, entry: Entry) -> Record | Skip:
        path, content = self.shards[entry.shard], entry.content
        if content is None:
            content = self.content(path, self._sample(entry), _not_at_hand)
        return content if isinstance(content, Skip) else self.record(path, content, entry)

    @abstractmethod
    def content(self, path: str, sample: TarSample, at_hand: AtHand) -> Any:
        """Returns what `record` needs of a sample, by its headers alone; a `Skip` of one that can be no record.

        Args:
            path: of the tar.
            sample: its members.
            at_hand: small members that came with the headers need not be read again.
        """

    @abstractmethod
    def record(self, path: str, content: Any, entry: Entry) -> Record | Skip:
        """Returns the record of an entry with this content."""

    def _sample(self, entry: Entry) -> TarSample:
        path, index = self.shards[entry.shard], self._indexes.of(entry.shard)
        if index is not None:
            indexed = index.at(entry.place)
            if indexed is not None:
                return indexed
        found = next(samples(self._storage.reader(path), self._storage.size(path), entry.place), None)
        if found is None or isinstance(found, Break):
            raise ValueError(f"{path} holds no sample at byte {entry.place} any more: the shard was rewritten.")
        return found

    def _walk_headers(self, shard: int, place: int) -> Iterator[Entry]:
        path = self.shards[shard]
        size = self._storage.size(path)
        if place > padded(size):
            return
        headers = _Headers(self._storage.reader(path))
        for sample in samples(headers.read, size, place, headers.ahead):
            if isinstance(sample, Break):
                yield _rest(shard, path, size, sample)
                continue
            content = self.content(path, sample, headers.at_hand)
            if not _lost(sample, content):
                yield Entry(shard, sample.place, sample.following, content)

    def _walk_index(self, index: TarIndex, shard: int, place: int) -> Iterator[Entry]:
        """As `_walk_headers`, but contents are left to `read`: of an interleaved shard most entries are passed over."""
        path, last = self.shards[shard], self._kept(index, shard)
        for first in range(index.row(place), last, _ROWS_AT_ONCE):
            rows = slice(first, min(first + _ROWS_AT_ONCE, last))
            yield from map(
                Entry, repeat(shard), index.places[rows].tolist(), index.following[rows].tolist(), repeat(None)
            )
        size = self._storage.size(path)
        if index.broken is not None and place <= padded(size):
            yield _rest(shard, path, size, index.broken)

    def _kept(self, index: TarIndex, shard: int) -> int:
        """How many samples of a shard are entries: all, or all but one that was lost with what the tar breaks off."""
        if index.broken is None or not len(index):
            return len(index)
        sample = index.sample(len(index) - 1)
        return len(index) - _lost(sample, self.content(self.shards[shard], sample, _not_at_hand))


class _Headers:
    """The bytes that were read last for a header: of most samples all but the image."""

    __slots__ = ("_bytes", "_start", "read")

    def __init__(self, read: ReadAt) -> None:
        self.read = read
        self._bytes = b""
        self._start = 0

    def ahead(self, offset: int, place: int) -> tuple[bytes, int]:
        self._bytes, self._start = self.read(offset, READ_AHEAD), offset
        return self._bytes, offset

    def at_hand(self, offset: int, size: int) -> bytes | None:
        begin = offset - self._start
        if size > _AT_HAND_LIMIT or begin < 0 or begin + size > len(self._bytes):
            return None
        return self._bytes[begin : begin + size]


def _not_at_hand(offset: int, size: int) -> None:
    return None


def _lost(sample: TarSample, content: Any) -> bool:
    """Whether a break took so much of the sample before it that no record is left: that is counted with the break."""
    return sample.at_break and isinstance(content, Skip)


def _rest(shard: int, path: str, size: int, broken: Break) -> Entry:
    """The part of a shard that is lost; a walk goes on past its last block, so that it does not meet the break again.

    That is farther than the end of the file, where the padding of the last member may be cut off.
    """
    return Entry(shard, broken.begin, padded(size) + 1, Skip(broken.cause, f"{path}@{broken.begin}", broken.detail))
