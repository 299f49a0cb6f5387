"""How many values are copies of others, by hashes of them, however many there are."""

import hashlib
from typing import Any

LIMIT = 1 << 18
"""Different hashes that are held, in about 25 MB; of more different values copies are estimated from a sample."""

HASH_BITS = 64
"""Of a hundred million different values two have the same hash with a probability of 0.03 %."""


def hash_of(data: bytes) -> int:
    """A hash of `HASH_BITS` bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=HASH_BITS // 8).digest(), "little")


class Copies:
    """Counts values that are equal to one before them.

    Exact up to `limit` different values. Beyond that the hashes that begin with so many zero bits are held as fit into
    the limit (distinct sampling, Gibbons 2001, "Distinct sampling for highly-accurate answers"): all copies of a value
    are held or none, so the share among those held estimates that of all, with a standard error of about 0.2 % of the
    values at the default limit, more where a few values make up most of the copies. Whether a hash is held depends on
    nothing but itself, so counts of parts add up to the count of all.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._zeros = 0
        self._held: dict[int, int] = {}
        self.seen = 0

    def add(self, value_hash: int) -> None:
        """Counts a value by its hash."""
        self.seen += 1
        if self._is_held(value_hash):
            self._held[value_hash] = self._held.get(value_hash, 0) + 1
            self._shrink()

    def merge(self, other: "Copies") -> None:
        """Counts all that the other has counted."""
        self.seen += other.seen
        self._zeros = max(self._zeros, other._zeros)
        self._held = {each: count for each, count in self._held.items() if self._is_held(each)}
        for each, count in other._held.items():
            if self._is_held(each):
                self._held[each] = self._held.get(each, 0) + count
        self._shrink()

    @property
    def exact(self) -> bool:
        """Whether every value is held."""
        return self._zeros == 0

    @property
    def share(self) -> float:
        """Share of the values that are equal to one before them; 0 where there is none."""
        held = sum(self._held.values())
        return 1 - len(self._held) / held if held else 0.0

    @property
    def copies(self) -> int:
        """How many values are equal to one before them; an estimate where not all are held."""
        held = sum(self._held.values())
        return held - len(self._held) if self.exact else round(self.share * self.seen)

    @property
    def most(self) -> int:
        """How often the commonest of those held is there."""
        return max(self._held.values(), default=0)

    def to_json(self) -> dict[str, Any]:
        return {"seen": self.seen, "copies": self.copies, "share": self.share, "most": self.most, "exact": self.exact}

    def _is_held(self, value_hash: int) -> bool:
        return value_hash >> HASH_BITS - self._zeros == 0

    def _shrink(self) -> None:
        while len(self._held) > self._limit:
            self._zeros += 1
            self._held = {each: count for each, count in self._held.items() if self._is_held(each)}
