"""An open local file that any number of threads read."""

import os


class LocalFile:
    """An open descriptor; it is closed when the last reader lets go, so eviction cannot pull it from under a thread."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    @property
    def size(self) -> int:
        """Bytes that the file has now."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Returns up to `length` bytes from `offset`; fewer only at the end of the file."""
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
