"""The shuffled order in which one lane meets the entries of one source, for ever or for some epochs.

The unit of work is a part of a shard: with fewer shards than strands a shard is dealt out in interleaved parts. The
sequence of units is one lazily evaluated permutation after another, one an epoch; strand s of S takes the units s,
s + S, s + 2S, ... of it. So over an epoch every entry comes exactly once over all strands, and no strand needs to know
where another stands. A lane reads several strands in turn and shuffles blocks of what they give.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from typing import Any, NamedTuple

from data_pipelines.passes import Passes
from data_pipelines.permutation import permuted, seed_of, shuffled
from data_pipelines.sources.source import Entry, Source


class Cursor(NamedTuple):
    """Where a strand stands."""

    unit: int = 0
    """How many units it has finished."""
    place: int = 0
    """Where the walk over the shard goes on."""
    ordinal: int = 0
    """How many entries of the shard were passed, those of other parts included."""


@dataclass(frozen=True, slots=True)
class Deal:
    """How the shards of a source are dealt to strands."""

    source: Source
    seed: int
    strands: int
    passes: Passes | None = None
    """After which there is no more; None: endless."""

    @property
    def parts(self) -> int:
        """Into how many parts every shard is cut: enough for each strand to have one."""
        return -(-self.strands // len(self.source.shards))

    @property
    def units(self) -> int:
        """Units in an epoch."""
        return self.parts * len(self.source.shards)

    def unit(self, strand: int, turn: int) -> tuple[int, int, int]:
        """Returns (epoch, shard, part) of the unit that a strand takes at its turn."""
        epoch, rank = divmod(strand + turn * self.strands, self.units)
        part, shard = divmod(permuted(rank, self.units, seed_of(self.seed, "units", epoch)), len(self.source.shards))
        return epoch, shard, part

    def over(self, strand: int, turn: int) -> bool:
        """Whether a strand has nothing left at its turn."""
        return self.passes is not None and strand + turn * self.strands >= self.passes.begun * self.units

    def epochs(self, strand: int, cursor: Cursor) -> float:
        """How many epochs of its units a strand has gone through, of the unit it is in the part that is known."""
        passes = self.passes
        if passes is not None and self.over(strand, cursor.unit):
            return passes.epochs
        epoch, shard, _ = self.unit(strand, cursor.unit)
        first, after = (-((strand - begun * self.units) // self.strands) for begun in (epoch, epoch + 1))
        end = None if passes is None else passes.end(epoch, shard)
        within = cursor.ordinal / (end or self.source.entries(shard) or float("inf")) if cursor.ordinal else 0.0
        done = (cursor.unit - first + within) / (after - first)
        return epoch + done * (1.0 if passes is None else min(passes.epochs - epoch, 1.0))

    def refuse_emptiness(self) -> None:
        """Raises ValueError where the source has no entry at all."""
        source = self.source
        if not any(True for shard in range(len(source.shards)) for _ in source.walk(shard)):
            raise ValueError(
                f"The {len(source.shards)} shards from {source.shards[0]} on hold no record at all; "
                "check the data or the pattern."
            )


class Strand:
    """A walk over the units of one strand."""

    def __init__(self, deal: Deal, index: int, cursor: Cursor) -> None:
        self._deal = deal
        self._index = index
        self._entries = self._walk(cursor)
        self.cursor = cursor

    def __next__(self) -> Entry:
        entry, self.cursor = next(self._entries)
        return entry

    def _walk(self, cursor: Cursor) -> Iterator[tuple[Entry, Cursor]]:
        empty = 0
        while not self._deal.over(self._index, cursor.unit):
            for entry, ordinal in self._unit(cursor):
                empty = -1
                yield entry, Cursor(cursor.unit, entry.following, ordinal)
            empty += 1
            if empty > self._deal.units:
                self._deal.refuse_emptiness()
                empty = 0
            cursor = Cursor(cursor.unit + 1)
        self.cursor = cursor

    def _unit(self, cursor: Cursor) -> Iterator[tuple[Entry, int]]:
        """Yields the entries of one unit from a cursor on, each with the ordinal after it."""
        source, parts = self._deal.source, self._deal.parts
        epoch, shard, part = self._deal.unit(self._index, cursor.unit)
        count = source.count(shard)
        end = None if self._deal.passes is None else self._deal.passes.end(epoch, shard)
        first = cursor.ordinal + (part - cursor.ordinal) % parts
        if count is None:
            ours = islice(source.walk(shard, cursor.place), first - cursor.ordinal, None, parts)
            ordinals = count_from(first, parts) if end is None else range(first, end, parts)
            for ordinal, entry in zip(ordinals, ours, strict=False):
                yield entry._replace(epoch=epoch), ordinal + 1
            return
        # A shard that is read at random has an order of its own every epoch, so its shuffle has no window.
        seed = seed_of(self._deal.seed, "entries", epoch, shard)
        for ordinal in range(first, count if end is None else min(count, end), parts):
            yield source.locate(shard, permuted(ordinal, count, seed))._replace(epoch=epoch), ordinal + 1


class SourceStream:
    """Blocks of `window` entries, taken from the strands in turn and shuffled; the state is where the block began.

    A block goes on with the strand after the last of the block before, so that all are read however short blocks are;
    strands that have ended are passed over, and the last block may be shorter than the others. After a restart the
    block's headers are walked again; nothing is read or decoded.
    """

    def __init__(self, deal: Deal, strands: tuple[int, ...], window: int, state: dict[str, Any] | None = None) -> None:
        self._deal = deal
        self._indices = strands
        self._window = window
        self._block = int(state["block"]) if state else 0
        self._taken = int(state["taken"]) if state else 0
        self._begin = tuple(Cursor(*cursor) for cursor in state["strands"]) if state else (Cursor(),) * len(strands)
        self._strands = tuple(Strand(deal, *each) for each in zip(strands, self._begin, strict=True))
        self._entries: list[Entry] = []
        self._spans = (self._gone(),) * 2
        """Epochs gone through where the block begins and where it ends."""

    def __iter__(self) -> Iterator[Entry]:
        return self

    def __next__(self) -> Entry:
        if not self._entries:
            self._fill()
            if not self._entries:
                raise StopIteration
        entry = self._entries[self._taken]
        self._taken += 1
        if self._taken == len(self._entries):
            self._begin = tuple(strand.cursor for strand in self._strands)
            self._block += 1
            self._taken = 0
            self._entries = []
            self._spans = self._spans[1:] * 2
        return entry

    @property
    def exhausted(self) -> bool:
        """Whether every strand has gone through as many units as an epoch of the whole source has."""
        return min(cursor.unit for cursor in self._begin) > self._deal.units

    @property
    def epochs(self) -> float:
        """How many epochs of its own part of the source the stream has given, to within what is known of shards."""
        begun, met = self._spans
        return begun + (met - begun) * self._taken / (len(self._entries) or 1)

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands, as JSON."""
        return {"block": self._block, "taken": self._taken, "strands": [list(cursor) for cursor in self._begin]}

    def _fill(self) -> None:
        entries: list[Entry] = []
        turns = deque(self._strands)
        turns.rotate(-self._block * self._window % len(turns))
        while turns and len(entries) < self._window:
            entry = next(turns[0], None)
            if entry is None:
                turns.popleft()
                continue
            entries.append(entry)
            turns.rotate(-1)
        if not entries and not self._block:
            self._deal.refuse_emptiness()
        seed = seed_of(self._deal.seed, "block", self._indices[0], self._block)
        self._entries = [entries[index] for index in shuffled(len(entries), seed)]
        gone = self._gone()
        self._spans = self._spans[0] if entries else gone, gone

    def _gone(self) -> float:
        strands = zip(self._indices, self._strands, strict=True)
        return sum(self._deal.epochs(index, strand.cursor) for index, strand in strands) / len(self._indices)
