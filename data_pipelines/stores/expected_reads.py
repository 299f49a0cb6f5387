"""Reads that were begun before anyone waits for them; each is handed over once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

Place = tuple[str, int, int]
"""A path, the first byte, and the one behind the last."""

_FORGOTTEN_AFTER = 16
"""Groups after which what nobody took is given up, such as the images behind a bad one of the same record."""


class _Begun(NamedTuple):
    group: int
    future: "Future[bytes]"


class ExpectedReads:
    """Holds up to `limit` bytes of them; what would be more is left to whoever reads it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._begun: OrderedDict[Place, _Begun] = OrderedDict()
        self._group = 0
        self.bytes = 0
        """Of the reads that are held."""

    def begin(self) -> None:
        """Says that what is added from now on is read after what was added before."""
        with self._lock:
            self._group += 1
            while self._begun and next(iter(self._begun.values())).group <= self._group - _FORGOTTEN_AFTER:
                (_, start, end), _ = self._begun.popitem(last=False)
                self.bytes -= end - start

    def add(self, place: Place, read: Callable[[], "Future[bytes]"]) -> None:
        """Begins a read if there is room for what it gives and it is not held already."""
        length = place[2] - place[1]
        with self._lock:
            if place not in self._begun and self.bytes + length <= self._limit:
                self._begun[place] = _Begun(self._group, read())
                self.bytes += length

    def take(self, place: Place) -> "Future[bytes] | None":
        """Hands a read over; None: it was not begun, or somebody else has it."""
        with self._lock:
            begun = self._begun.pop(place, None)
            if begun is None:
                return None
            self.bytes -= place[2] - place[1]
        return begun.future
