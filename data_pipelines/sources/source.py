"""What every source of records is: shards of entries, each at a place that can be found again."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipelines.quota import Skip
from data_pipelines.record import Record


class Entry(NamedTuple):
    """One place of a shard: what a walk over the headers found there, before any text or pixel is read."""

    shard: int
    place: int
    """Where the entry begins; with `shard` it is enough to find it again (a byte offset in a tar)."""
    following: int
    """Where a walk goes on after this entry."""
    content: Any
    """A `Skip`, or whatever lets the source read the record without searching; None where its place is enough for
    that. Never saved."""
    epoch: int = 0
    """Which pass over the source it was met in; whoever passes over it more than once says so."""


class Source(Protocol):
    """Shards of records, walked in order of place and read at random.

    The same shard always gives the same entries. Nothing here raises for bad data: it gives a `Skip`.
    I/O errors are raised.
    """

    @property
    def shards(self) -> tuple[str, ...]:
        """The paths, in the order that numbers them."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a run and its continuation, as JSON."""
        ...

    def count(self, shard: int) -> int | None:
        """How many entries a shard holds if its places are 0 .. count - 1 and reading them in any order costs the same.

        The shard is then met in an order of its own every epoch. None: its places are others, in whose order it is met.
        """
        ...

    def entries(self, shard: int) -> int | None:
        """How many entries a walk over a shard gives, where that is known without one; else None."""
        ...

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        """Yields the entries of a shard from a place on."""
        ...

    def locate(self, shard: int, place: int) -> Entry:
        """Returns the entry at a place that a walk gave before."""
        ...

    def read(self, entry: Entry) -> Record | Skip:
        """Returns the record of an entry; its images stay where they are."""
        ...


def records(source: Source) -> Iterator[Record | Skip]:
    """Yields every record of a source exactly once, in order of place, and a `Skip` for each that is bad."""
    for shard in range(len(source.shards)):
        for entry in source.walk(shard):
            yield source.read(entry)


def entry_counts(source: Source) -> np.ndarray | None:
    """Returns i64[shards], how many entries each shard holds; None where that is not known of all of them."""
    counts = [source.entries(shard) for shard in range(len(source.shards))]
    return None if None in counts else np.array(counts, np.int64)
