"""Reads ranges of remote objects: by blocks, which are kept and read ahead, or just the bytes that are asked for."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

from data_pipelines.stores.blocks import BlockName, Blocks, MemoryBlocks
from data_pipelines.stores.errors import ChangedObjectError, UnreadableError
from data_pipelines.stores.expected_reads import ExpectedReads, Place
from data_pipelines.stores.remote_object import RemoteObject, check_version, open_remote
from data_pipelines.stores.retries import Retries
from data_pipelines.stores.slow_log import LOGGER, SlowLog

_OPEN_OBJECTS = 1024
_REMEMBERED_VERSIONS = 100_000
"""Objects of which a process knows what they were when it first opened them: every shard, but not every image of a
folder, which would take hundreds of megabytes."""


class ReadingLimits(NamedTuple):
    """How remote objects are read; see `StorageConfig`."""

    block_bytes: int
    read_ahead: int
    memory_bytes: int
    requests: int
    request_seconds: float
    slow_seconds: float


@dataclass(slots=True)
class _Opened:
    object: RemoteObject
    key: str
    """Of its blocks."""
    last_block: int | None = None
    """The one that was read last."""


class RemoteReader:
    """Safe to share between threads; all requests are made by threads of its own, so that whoever waits can say so."""

    def __init__(self, limits: ReadingLimits, retries: Retries, log: SlowLog, disk: Blocks | None) -> None:
        """
        Args:
            limits: of blocks, memory and requests.
            retries: of a request.
            log: is told of long waits.
            disk: keeps blocks; None: memory alone does.
        """
        self._limits = limits
        self._retries = retries
        self._log = log
        self._disk = disk
        self._memory = MemoryBlocks(limits.memory_bytes)
        self._pool = ThreadPoolExecutor(limits.requests, thread_name_prefix="store")
        self._lock = threading.Lock()
        self._coming: dict[BlockName, Future[bytes]] = {}
        self._ahead: set[BlockName] = set()
        self._versions: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._object = lru_cache(maxsize=_OPEN_OBJECTS)(self._opened)
        self._expected = ExpectedReads(limits.memory_bytes)
        self._told: set[str] = set()

    def size(self, path: str) -> int:
        """Returns an object's length in bytes."""
        return self._object(path).object.size

    def version(self, path: str) -> dict[str, Any]:
        """Asks for an object's size and version, as JSON; raises ChangedObjectError as `read`."""
        found = self._opened(path).object
        return {"size": found.size} | ({"version": found.version} if found.version else {})

    def read(self, path: str, start: int, end: int, alone: bool = False) -> bytes:
        """Returns the bytes from `start` to before `end` or the object's end.

        Args:
            path: of the object.
            start: first byte.
            end: behind the last one.
            alone: whether what stands around these bytes is not about to be read too; with a disk it is anyway.
        """
        end = min(end, self.size(path))
        if end <= start:
            return b""
        block = self._limits.block_bytes
        numbers = range(start // block, (end - 1) // block + 1)
        kept = {number: self._kept(path, number, start, end) for number in numbers}
        if alone and self._disk is None and None in kept.values():
            self._tell("alone", f"data.storage.cache is not set, so every image of {path} is a request of its own")
            coming = self._expected.take((path, start, end)) or self._pool.submit(self._requested, path, start, end)
            return self._arrived(coming, path, start, end)
        # All that is not kept, and what comes next, is asked for before the first of it is waited for.
        blocks = {number: self._block(self._name(path, number), path) for number in numbers if kept[number] is None}
        opened = self._object(path)
        if opened.last_block != numbers[-1]:
            opened.last_block = numbers[-1]
            self._read_ahead(path, numbers[-1])
        pieces = [
            self._arrived(blocks[number], path, start, end)[max(start - number * block, 0) : end - number * block]
            if piece is None
            else piece
            for number, piece in kept.items()
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def expect(self, places: Iterable[Place]) -> None:
        """Asks for bytes that will each be read alone once, and are not kept: to the disk, or to be handed over."""
        self._expected.begin()
        for path, start, end in places:
            size = self._limits.block_bytes
            names = [self._name(path, number) for number in range(start // size, (end - 1) // size + 1)]
            missing = [name for name in names if not self._memory.holds(name)]
            if self._disk is not None:
                for name in missing:
                    if self._disk.room(name):
                        self._block(name, path)
            elif missing:
                self._expected.add((path, start, end), partial(self._pool.submit, self._requested, path, start, end))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _kept(self, path: str, number: int, start: int, end: int) -> bytes | None:
        """What a block has of the bytes from `start` to before `end`, if it is kept."""
        name, begin = self._name(path, number), number * self._limits.block_bytes
        part = max(start - begin, 0), min(end - begin, name.length)
        piece = self._memory.read(name, *part)
        return self._disk.read(name, *part) if piece is None and self._disk is not None else piece

    def _read_ahead(self, path: str, last: int) -> None:
        """Asks for the blocks behind the last one that was read, as far as there is room and nothing else waits."""
        blocks = -(-self.size(path) // self._limits.block_bytes)
        kept = self._disk or self._memory
        for number in range(last + 1, min(last + 1 + self._limits.read_ahead, blocks)):
            name = self._name(path, number)
            with self._lock:
                if name in self._coming or 2 * len(self._ahead) >= self._limits.requests:
                    continue
            if kept.room(name):
                with self._lock:
                    self._ahead.add(name)
                self._block(name, path)

    def _block(self, name: BlockName, path: str) -> "Future[bytes]":
        """A block that is on its way, asked for once however many wait for it."""
        with self._lock:
            future = self._coming.get(name)
            if future is None:
                start = name.number * self._limits.block_bytes
                future = self._pool.submit(self._fetched, name, path, start, start + name.length)
                self._coming[name] = future
        return future

    def _fetched(self, name: BlockName, path: str, start: int, end: int) -> bytes:
        try:
            # It may have come between the look at what is kept and the one at what is on its way.
            kept = self._kept(path, name.number, start, end)
            if kept is not None:
                return kept
            data = self._requested(path, start, end)
            self._keep(name, data)
            return data
        finally:
            with self._lock:
                self._coming.pop(name, None)
                self._ahead.discard(name)

    def _keep(self, name: BlockName, data: bytes) -> None:
        if self._disk is not None:
            try:
                return self._disk.put(name, data)
            except OSError as error:
                self._tell("disk", f"data.storage.cache cannot be written ({error}); memory alone keeps what is read")
        with self._lock:
            awaited = name not in self._ahead
        self._memory.put(name, data, awaited)
        if self._memory.lost:
            self._tell(
                "memory",
                "data.storage.memory_bytes is too little for the shards that are open at once: blocks go before they "
                "are read. Raise it, or set data.storage.cache",
            )

    def _requested(self, path: str, start: int, end: int) -> bytes:
        return self._retries.run(lambda: self._object(path).object.read(start, end), _range(path, start, end))

    def _arrived(self, future: "Future[bytes]", path: str, start: int, end: int) -> bytes:
        """Waits for a request, and says so when that takes long.

        Raises:
            UnreadableError: the reader was closed before the request was made.
        """
        waited, slow = 0.0, self._limits.slow_seconds
        while True:
            try:
                # Not `wait`, which does not notice that a request was cancelled.
                return future.result(slow)
            except CancelledError:
                raise UnreadableError(
                    f"{_range(path, start, end)}: the storage was closed before it was read"
                ) from None
            except TimeoutError:
                if future.done():
                    return future.result()
            waited += slow
            self._log.say(f"waiting for {_range(path, start, end)} for {waited:.0f} s")

    def _opened(self, path: str) -> _Opened:
        """Opens an object; it must be what it was when this process first opened it."""
        found = self._retries.run(lambda: open_remote(path, self._limits.request_seconds), path)
        now = found.size, hashlib.blake2b(found.version.encode(), digest_size=8).hexdigest()
        before = self._version_before(path, now)
        try:
            check_version(before, now)
        except ChangedObjectError as error:
            raise ChangedObjectError(f"could not read {path}: {error}") from None
        label = "\0".join((path, str(found.size), found.version, str(self._limits.block_bytes)))
        return _Opened(found, hashlib.blake2b(label.encode(), digest_size=16).hexdigest())

    def _version_before(self, path: str, now: tuple[int, str]) -> tuple[int, str]:
        """What an object was when it was first opened; those opened longest ago are forgotten."""
        with self._lock:
            before = self._versions.setdefault(path, now)
            self._versions.move_to_end(path)
            if len(self._versions) > _REMEMBERED_VERSIONS:
                self._versions.popitem(last=False)
        return before

    def _name(self, path: str, number: int) -> BlockName:
        opened, block = self._object(path), self._limits.block_bytes
        return BlockName(opened.key, number, min(block, opened.object.size - number * block))

    def _tell(self, what: str, sentence: str) -> None:
        """Says once what could be better."""
        if what not in self._told:
            self._told.add(what)
            LOGGER.warning("%s", sentence)


def _range(path: str, start: int, end: int) -> str:
    return f"{path} (bytes {start} to {end - 1})"
