"""Where blocks of remote objects are kept once they are read: the common face, and the one in memory."""

import threading
from collections import OrderedDict
from typing import NamedTuple, Protocol


class BlockName(NamedTuple):
    """A block of one version of one object."""

    key: str
    """Hexadecimal digest of the path, the version and how it is cut into blocks."""
    number: int
    """From the object's beginning."""
    length: int
    """Bytes; less than others have for the last one alone."""


class Blocks(Protocol):
    """Keeps blocks as long as it has room; any of them may be gone at any time."""

    def read(self, name: BlockName, start: int, end: int) -> bytes | None:
        """Returns these bytes of a block, or None if it is not kept."""
        ...

    def put(self, name: BlockName, data: bytes) -> None:
        """Keeps a block for some time."""
        ...

    def room(self, name: BlockName) -> bool:
        """Whether it is of use to fetch a block before anyone asks for it."""
        ...


class MemoryBlocks:
    """In memory: the ones used longest ago go first."""

    def __init__(self, limit: int) -> None:
        """Keeps up to `limit` bytes."""
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[BlockName, bytes] = OrderedDict()
        self._unread: dict[BlockName, int] = {}
        self.bytes = 0
        """Of the blocks that are kept."""
        self.lost = 0
        """Blocks that went before anyone read them."""

    def read(self, name: BlockName, start: int, end: int) -> bytes | None:
        with self._lock:
            data = self._held.get(name)
            if data is None:
                return None
            self._held.move_to_end(name)
            self._unread.pop(name, None)
        return data[start:end]

    def put(self, name: BlockName, data: bytes, awaited: bool = True) -> None:
        """Keeps a block; `awaited` says that someone has read it already."""
        with self._lock:
            if name in self._held:
                return
            self._held[name] = data
            if not awaited:
                self._unread[name] = len(data)
            self.bytes += len(data)
            while self.bytes > self._limit and len(self._held) > 1:
                gone, freed = self._held.popitem(last=False)
                self.bytes -= len(freed)
                self.lost += self._unread.pop(gone, None) is not None

    def holds(self, name: BlockName) -> bool:
        with self._lock:
            return name in self._held

    def room(self, name: BlockName) -> bool:
        with self._lock:
            return name not in self._held and 2 * sum(self._unread.values()) < self._limit
