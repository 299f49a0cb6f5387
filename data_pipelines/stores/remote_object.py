"""One remote object as it was when it was met first: every read is made sure to be of that version."""

from typing import Any, Protocol

import fsspec

from data_pipelines.stores.errors import ChangedObjectError, UnreadableError, as_os_errors

_VERSIONS = ("generation", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""What stores call the mark of an object's version, the surest first."""


class RemoteObject(Protocol):
    """An object of a store; reads come from any thread."""

    size: int
    """Bytes."""
    version: str
    """Whatever the store says that differs between two contents of the same path; empty where it says nothing."""

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to before `end`, which must lie inside.

        Raises:
            ChangedObjectError: the object has another version or size by now.
            OSError: the store failed, or gave less than it was asked for.
        """
        ...


def filesystem_of(path: str) -> tuple[Any, str]:
    """Returns the fsspec filesystem of a path, which remembers no listings, and the path inside it.

    Raises:
        UnreadableError: the package that reads such paths is not installed.
        ValueError: nothing reads them.
    """
    try:
        return fsspec.core.url_to_fs(path, use_listings_cache=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except ImportError:
        with as_os_errors(path):
            raise
    raise AssertionError("unreachable")


def open_remote(path: str, request_seconds: float) -> RemoteObject:
    """Asks a store for an object's size and version.

    Args:
        path: with its scheme.
        request_seconds: after which a request that has no answer counts as failed.
    """
    filesystem, inner = filesystem_of(path)
    if path.startswith(("http://", "https://")):
        from data_pipelines.stores.http_object import HttpObject

        return HttpObject(filesystem, inner, request_seconds)
    return FilesystemObject(filesystem, inner, request_seconds)


class FilesystemObject:
    """Any fsspec filesystem: the version is asked for again behind every read.

    What was read between two questions with the same answer is of that version, whatever the store promises.
    """

    def __init__(self, filesystem: Any, path: str, request_seconds: float) -> None:
        self._filesystem = filesystem
        self._path = path
        self._seconds = request_seconds
        self.size, self.version = self._described()

    def read(self, start: int, end: int) -> bytes:
        data = self._ask("cat_file", start=start, end=end)
        check_version((self.size, self.version), self._described())
        if len(data) != end - start:
            raise OSError(f"the store gave {len(data)} bytes of {end - start}")
        return data

    def _described(self) -> tuple[int, str]:
        info = self._ask("info")
        if info.get("type") == "directory":
            raise IsADirectoryError("the store has objects below this name, and none of it")
        if info.get("size") is None:
            raise UnreadableError("the store does not say how large it is")
        return int(info["size"]), next((f"{name} {info[name]}" for name in _VERSIONS if info.get(name)), "")

    def _ask(self, method: str, **arguments: int) -> Any:
        with as_os_errors(self._path):
            if not self._filesystem.async_impl:
                return getattr(self._filesystem, method)(self._path, **arguments)
            question = getattr(self._filesystem, f"_{method}")
            return fsspec.asyn.sync(self._filesystem.loop, question, self._path, **arguments, timeout=self._seconds)


def check_version(before: tuple[int, str], now: tuple[int, str]) -> None:
    """Raises ChangedObjectError when (size, version) is another than before."""
    if before != now:
        raise ChangedObjectError(
            f"it changed while the run read it: it had {before[0]} bytes ({before[1] or 'no version'}) and now has "
            f"{now[0]} ({now[1] or 'no version'}). Put the former object back, or begin a new run with this one."
        )
