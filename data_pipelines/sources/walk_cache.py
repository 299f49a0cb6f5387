"""Remembers the entries of the shards walked last, so that parts of one shard and small sources are walked once."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator

from data_pipelines.sources.source import Entry


class WalkCache:
    """Keeps whole walks of up to `limit` entries together; the one used longest ago goes first."""

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._held: OrderedDict[int, tuple[Entry, ...]] = OrderedDict()

    def walk(self, shard: int, place: int, fresh: Callable[[int, int], Iterator[Entry]]) -> Iterator[Entry]:
        """Yields what `fresh(shard, place)` would."""
        held = self._held.get(shard)
        if held is not None:
            self._held.move_to_end(shard)
            start = bisect_left(held, place, key=lambda entry: entry.place)
            return iter(held[start:])
        return fresh(shard, place) if place else self._recorded(shard, fresh)

    def _recorded(self, shard: int, fresh: Callable[[int, int], Iterator[Entry]]) -> Iterator[Entry]:
        walked: list[Entry] = []
        for entry in fresh(shard, 0):
            if len(walked) <= self._limit:
                walked.append(entry)
            yield entry
        if len(walked) <= self._limit:
            self._held[shard] = tuple(walked)
            while sum(map(len, self._held.values())) > self._limit:
                self._held.popitem(last=False)
