"""Byte ranges of files, local or remote: opened once, read from any thread, retried when the store stumbles."""

import threading
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache, partial
from typing import Any

from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from data_pipelines.file_version import local_version
from data_pipelines.record import ByteRange, ImageBytes, ImageSource
from data_pipelines.stores.block_cache import BlockCache
from data_pipelines.stores.errors import UnreadableError
from data_pipelines.stores.local_file import LocalFile
from data_pipelines.stores.remote_reader import ReadingLimits, RemoteReader
from data_pipelines.stores.retries import Retries
from data_pipelines.stores.slow_log import SlowLog

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> bytes, fewer only at the end of the file."""

_LONGEST_WAIT = 20.0
_OPEN_FILES = 128


def is_local(path: str) -> bool:
    """Whether a path needs no fsspec filesystem."""
    return "://" not in path or path.startswith("file://")


class StorageConfig(Config):
    """How shards are read. Nothing of it changes what a run reads, so a run may go on with other values."""

    cache: str | None = None
    """Folder in which blocks of remote shards are kept; runs and processes of a machine may share it. Null: none are,
    and every image of a remote shard is a request of its own."""
    cache_bytes: int = Field(default=50 * 2**30, gt=0)
    """Bytes of the cache; the blocks used longest ago go first."""
    block_bytes: int = Field(default=2**20, ge=4096)
    """Bytes that one request reads of a remote shard that is walked."""
    read_ahead: int = Field(default=4, ge=0)
    """Blocks that are asked for beyond the one that is read; 0: none."""
    memory_bytes: int = Field(default=64 * 2**20, gt=0)
    """Bytes of blocks that a process keeps in memory where there is no cache."""
    requests: int = Field(default=16, gt=0)
    """Requests of one process to remote stores at the same time."""
    attempts: int = Field(default=10, gt=0)
    """How often a read is tried that fails."""
    first_wait_seconds: float = Field(default=0.2, gt=0)
    """Seconds from a failed read to the second attempt; each later wait is twice as long, up to 20 seconds, and up to
    half as much more by chance, so that the processes of a run do not ask all at once."""
    give_up_seconds: float = Field(default=300.0, gt=0)
    """Seconds after which a read that has failed is not tried again; the run then stops with an error."""
    request_seconds: float = Field(default=60.0, gt=0)
    """Seconds after which a request without an answer counts as failed."""
    slow_seconds: float = Field(default=10.0, gt=0)
    """Seconds of waiting after which a line says so, and between two such lines."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> "StorageConfig":
        for name, blocks in (("cache_bytes", 16), ("memory_bytes", 4)):
            least = blocks * (self.block_bytes + 16)
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, less than {blocks} blocks take: {least}")
        return self


class Storage:
    """Reads byte ranges by path; safe to share between threads.

    A failed read is tried again with growing waits and then raised: an I/O error is never a reason to skip data.
    """

    def __init__(self, config: StorageConfig | None = None, open_files: int = _OPEN_FILES) -> None:
        """
        Args:
            config: how; None: as the defaults say.
            open_files: local ones that stay open.
        """
        self.config = config or StorageConfig()
        self._log = SlowLog(self.config.slow_seconds)
        self._closing = threading.Event()
        self._retries = Retries(
            attempts=self.config.attempts,
            first_wait=self.config.first_wait_seconds,
            longest_wait=_LONGEST_WAIT,
            give_up=self.config.give_up_seconds,
            failed=self._log.failed,
            pause=self._pause,
        )
        self._file = lru_cache(maxsize=open_files)(_open_local)
        self._lock = threading.Lock()

    def size(self, path: str) -> int:
        """Returns a file's length in bytes."""
        if not is_local(path):
            return self._remote_reader().size(path)
        return self._retries.run(lambda: self._file(path).size, path)

    def version(self, path: str) -> dict[str, Any]:
        """Returns what tells a file's content from another that was there, as JSON: its size, and a time or an etag."""
        if is_local(path):
            return local_version(path.removeprefix("file://"))
        return self._remote_reader().version(path)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Returns up to `length` bytes from `offset`; fewer only at the end of the file.

        For a file that is walked: of a remote one the bytes around and behind these are read too.
        """
        if not is_local(path):
            return self._remote_reader().read(path, offset, offset + length)
        try:
            return self._file(path).read(offset, length)
        except OSError as error:
            return self._read_again(error, path, offset, length)

    def reader(self, path: str) -> ReadAt:
        """Returns `read` of one file, for whoever reads it many times."""
        if not is_local(path):
            return partial(self.read, path)
        file = self._retries.run(lambda: self._file(path), path)

        def read(offset: int, length: int) -> bytes:
            try:
                return file.read(offset, length)
            except OSError as error:
                return self._read_again(error, path, offset, length)

        return read

    def read_range(self, place: ByteRange) -> bytes:
        """Returns exactly the bytes of a range, which may stand anywhere.

        Raises:
            OSError: the file is shorter than it was when the range was found.
        """
        path, offset = place.path, place.offset
        length = self.size(path) - offset if place.length is None else place.length
        data = self._read_alone(path, offset, length)
        if len(data) != length:
            raise OSError(
                f"{path} gave {len(data)} bytes from byte {offset} where {length} were found before: "
                "the file changed while it was being read"
            )
        return data

    def read_image(self, source: ImageSource, limit: int | None = None) -> bytes:
        """Returns the encoded bytes of an image, or the first `limit` of them; raises OSError as `read_range`."""
        if isinstance(source, ImageBytes):
            return source.data[:limit]
        if limit is None:
            return self.read_range(source)
        length = limit if source.length is None else min(source.length, limit)
        return self._read_alone(source.path, source.offset, length)

    def expect(self, sources: Iterable[ImageSource]) -> None:
        """Asks remote stores for images that `read_image` is about to read whole, all at once; local files wait."""
        places = [each for each in sources if isinstance(each, ByteRange) and not is_local(each.path)]
        if places:
            self._remote_reader().expect(
                (each.path, each.offset, each.offset + each.length) for each in places if each.length
            )

    def take_failures(self) -> int:
        """Returns how many attempts to read failed since the last call, and were made again."""
        return self._log.take_failures()

    def close(self) -> None:
        """Lets go of every open file and ends the threads; whoever still waits for a failing store is let go."""
        self._closing.set()
        self._file.cache_clear()
        if "_remote" in self.__dict__:
            self._remote.close()

    def _read_alone(self, path: str, offset: int, length: int) -> bytes:
        """As `read`, of bytes whose neighbours are not about to be read."""
        if is_local(path):
            return self.read(path, offset, length)
        return self._remote_reader().read(path, offset, offset + length, alone=True)

    def _read_again(self, error: OSError, path: str, offset: int, length: int) -> bytes:
        """Reads after a first attempt that failed: it counts as one."""
        failed = [error]

        def attempt() -> bytes:
            if failed:
                raise failed.pop()
            return self._file(path).read(offset, length)

        return self._retries.run(attempt, f"{path} at byte {offset}")

    def _remote_reader(self) -> RemoteReader:
        with self._lock:
            return self._remote

    @cached_property
    def _remote(self) -> RemoteReader:
        """Made when the first remote path is read: whoever reads local files has no threads of it."""
        config = self.config
        limits = ReadingLimits(**config.model_dump(include=set(ReadingLimits._fields)))
        disk = BlockCache(config.cache, config.cache_bytes, config.block_bytes) if config.cache else None
        return RemoteReader(limits, self._retries, self._log, disk)

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise UnreadableError("the storage was closed while a read was waiting to be tried again")


def _open_local(path: str) -> LocalFile:
    return LocalFile(path.removeprefix("file://"))
