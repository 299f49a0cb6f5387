"""The entries of a source, each once, in an order whose beginning is spread over its shards."""

from collections import deque
from collections.abc import Iterator

from data_pipelines.permutation import permuted, seed_of, shuffled
from data_pipelines.sources.source import Entry, Source

SPREAD = 64
"""Shards that are read in turn."""


def spread_entries(source: Source, seed: int) -> Iterator[Entry]:
    """Yields every entry exactly once; the first ones are a sample.

    Shards come in an order that the seed names, `SPREAD` of them in turn. A shard that can be read at random gives its
    entries in an order of its own, another from its beginning on.
    """
    order = iter(shuffled(len(source.shards), seed_of(seed, "shards")))
    turn: deque[Iterator[Entry]] = deque()
    while True:
        while len(turn) < SPREAD and (shard := next(order, None)) is not None:
            turn.append(_shard_entries(source, int(shard), seed))
        if not turn:
            return
        entries = turn.popleft()
        entry = next(entries, None)
        if entry is not None:
            yield entry
            turn.append(entries)


def _shard_entries(source: Source, shard: int, seed: int) -> Iterator[Entry]:
    count = source.count(shard)
    if count is None:
        yield from source.walk(shard)
        return
    order = seed_of(seed, "entries", shard)
    for place in range(count):
        yield source.locate(shard, permuted(place, count, order))
