"""Quantiles of any number of values in a bounded number of buckets."""

import math
from collections import Counter
from typing import Any

ACCURACY = 0.01
"""Largest relative error of a quantile."""

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

_GROWTH = (1 + ACCURACY / 2) ** 2
"""Twice as fine as the error needs, so that rounding the quantiles of whole numbers stays within it."""


class Histogram:
    """Counts values of 0 or more in buckets around the powers of a constant factor.

    As DDSketch (Masson, Rim and Lee 2019, https://arxiv.org/abs/1908.10693): a quantile is within `ACCURACY` of a value
    that was counted, whatever the distribution, and two histograms add up to that of all values. Values from 1 to a
    million take 1386 buckets. Count, total, least and most are exact, and so are quantiles of 0, of 1 and of whole
    numbers up to 99.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total: float = 0
        self.least = math.inf
        self.most = -math.inf
        self._buckets: Counter[int | None] = Counter()
        """Number of the bucket, None for zeros -> values."""
        self._whole = True

    def add(self, value: float) -> None:
        """Counts a value; a negative one, NaN and infinity are a ValueError."""
        if not 0 <= value < math.inf:
            raise ValueError(f"found {value}, expected a finite number of at least 0")
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)
        self._whole = self._whole and value == int(value)
        self._buckets[round(math.log(value) / math.log(_GROWTH)) if value else None] += 1

    def merge(self, other: "Histogram") -> None:
        """Counts all that the other has counted."""
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        self._whole = self._whole and other._whole
        self._buckets.update(other._buckets)

    @property
    def mean(self) -> float:
        """NaN where nothing was counted."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The value below which `share` of the others lie, the lower of two; NaN where nothing was counted."""
        if not self.count:
            return math.nan
        left = math.floor(share * (self.count - 1))
        for value, count in self.buckets():
            left -= count
            if left < 0:
                return value
        raise AssertionError("unreachable")

    def buckets(self) -> list[tuple[float, int]]:
        """A value of every bucket that holds any, ascending, and how many it holds."""
        ordered = sorted(self._buckets.items(), key=lambda item: -math.inf if item[0] is None else item[0])
        return [(self._value(bucket), count) for bucket, count in ordered]

    def to_json(self) -> dict[str, Any]:
        """Everything, for `stats.json`; without a value null stands for what is not known."""
        known = self.count > 0
        return {
            "count": self.count,
            "total": self.total,
            "mean": self.mean if known else None,
            "least": self.least if known else None,
            "most": self.most if known else None,
            "quantiles": {f"{share:g}": self.quantile(share) if known else None for share in QUANTILES},
            "buckets": [list(bucket) for bucket in self.buckets()],
        }

    def _value(self, bucket: int | None) -> float:
        """The value of a bucket that is within `ACCURACY` of all that it can hold."""
        if bucket is None:
            return 0
        middle = _GROWTH**bucket
        return min(max(round(middle) if self._whole else middle, self.least), self.most)
