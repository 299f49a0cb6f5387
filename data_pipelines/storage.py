"""Byte ranges of files, local or remote: opened once, read from any thread, retried when the store stumbles."""

import os
import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import fsspec

from data_pipelines.file_version import local_version, remote_version
from data_pipelines.record import ByteRange, ImageBytes, ImageSource

_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
Result = TypeVar("Result")


def is_local(path: str) -> bool:
    """Whether a path needs no fsspec filesystem."""
    return "://" not in path or path.startswith("file://")


class Storage:
    """Reads byte ranges by path; safe to share between threads.

    A failed read is tried again `attempts` times in all, waiting `first_wait` seconds and twice as long each time, and
    then raised: an I/O error is never a reason to skip data. `sleep` is replaced in tests.
    """

    def __init__(
        self,
        attempts: int = 5,
        first_wait: float = 0.2,
        open_files: int = 128,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._attempts = attempts
        self._first_wait = first_wait
        self._sleep = sleep
        self._handle = lru_cache(maxsize=open_files)(_open)

    def size(self, path: str) -> int:
        """Returns a file's length in bytes."""
        return self._retried(lambda: self._handle(path).size(), path, 0)

    def version(self, path: str) -> dict[str, Any]:
        """Returns what tells a file's content from another that was there, as JSON: its size, and a time or an etag."""
        if is_local(path):
            return local_version(path.removeprefix("file://"))
        return self._retried(lambda: remote_version(path), path, 0)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Returns up to `length` bytes from `offset`; fewer only at the end of the file."""
        return self._retried(lambda: self._handle(path).read(offset, length), path, offset)

    def read_range(self, place: ByteRange) -> bytes:
        """Returns exactly the bytes of a range.

        Raises:
            OSError: the file is shorter than it was when the range was found.
        """
        length = self.size(place.path) - place.offset if place.length is None else place.length
        data = self.read(place.path, place.offset, length)
        if len(data) != length:
            raise OSError(
                f"{place.path} gave {len(data)} bytes from byte {place.offset} where {length} were found before: "
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
        return self.read(source.path, source.offset, length)

    def close(self) -> None:
        """Lets go of every open file."""
        self._handle.cache_clear()

    def _retried(self, action: Callable[[], Result], path: str, offset: int) -> Result:
        for attempt in range(self._attempts):
            try:
                return action()
            except _PERMANENT as error:
                raise type(error)(f"could not read {path}: {error.strerror or error}") from error
            except OSError as error:
                if attempt + 1 == self._attempts:
                    raise OSError(
                        f"could not read {path} at byte {offset} after {self._attempts} attempts: {error}"
                    ) from error
                self._sleep(self._first_wait * 2**attempt * random.uniform(1.0, 1.5))
        raise AssertionError("unreachable")


def _open(path: str) -> "_LocalFile | _RemoteFile":
    return _LocalFile(path.removeprefix("file://")) if is_local(path) else _RemoteFile(path)


class _LocalFile:
    """An open descriptor; it is closed when the last reader lets go, so eviction cannot pull it from under a thread."""

    def __init__(self, path: str) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        while data and len(data) < length:
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class _RemoteFile:
    """Range requests through fsspec; one request a read, so that threads share nothing."""

    def __init__(self, path: str) -> None:
        self._filesystem: Any
        self._filesystem, self._path = fsspec.core.url_to_fs(path)
        self._size = int(self._filesystem.size(self._path))

    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        return self._filesystem.cat_file(self._path, start=offset, end=end) if end > offset else b""
