"""A file of the storage as a file object, for libraries that read files themselves."""

import io

from data_pipelines.record import ByteRange
from data_pipelines.storage import Storage


class StoredFile(io.RawIOBase):
    """Reads through the storage, so that what fails is tried again; and remembers the error that a read ended with.

    Libraries raise an OSError for damaged files too: where `failure` is None, the bytes were read and are no good.
    """

    def __init__(self, path: str, storage: Storage) -> None:
        """Raises OSError: there is no such file, or it cannot be read."""
        super().__init__()
        self._path = path
        self._storage = storage
        self._size = storage.size(path)
        self._position = 0
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size < 0 else min(size, left)
        if not length:
            return b""
        try:
            data = self._storage.read_range(ByteRange(self._path, self._position, length))
        except OSError as error:
            self.failure = error
            raise
        self._position += length
        return data
