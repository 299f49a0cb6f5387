"""From which source the next record comes, as a pure function of what was drawn so far."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from data_pipelines.mixture import Exhausted, MixtureConfig
from data_pipelines.passes import Passes, UncountedError, passes_of
from data_pipelines.sources.source import Source, entry_counts


class Portion(NamedTuple):
    """What a mixture takes of a source, once the source is known."""

    name: str
    weight: float
    passes: Passes | None
    """After which it has run out; None: never."""


def portions_of(mixture: MixtureConfig, sources: Mapping[str, Source]) -> tuple[Portion, ...]:
    """Returns the portions of the sources that a mixture draws from, in its order.

    Raises:
        ValueError: a share depends on a number of records that is not known, or that is 0.
    """
    return tuple(_portion(mixture, name, sources[name]) for name in mixture.drawn)


def _portion(mixture: MixtureConfig, name: str, source: Source) -> Portion:
    counts = cache(lambda: entry_counts(source))
    try:
        return Portion(name, _weight(mixture, name, counts), passes_of(mixture.epochs[name], counts))
    except ValueError as error:
        raise ValueError(f"source {name} (shards from {source.shards[0]} on): {error}") from None


def _weight(mixture: MixtureConfig, name: str, counts: Callable[[], np.ndarray | None]) -> float:
    """The weight of a source: its own times the size that counts beside it.

    With a temperature T that is N^(1/T) (Raffel et al. 2020, "Exploring the limits of transfer learning", section
    3.5.2), for epochs alone epochs * N.
    """
    share, temperature = mixture.drawn[name], mixture.temperature
    if temperature is None and (share.weight is not None or len(mixture.drawn) == 1):
        return 1.0 if share.weight is None else share.weight
    entries = counts()
    if entries is None:
        raise UncountedError("its share depends on its size")
    size = int(entries.sum())
    if not size:
        raise ValueError("it holds no record at all; check the data or the pattern")
    if temperature is not None:
        return (1.0 if share.weight is None else share.weight) * float(size) ** (1 / temperature)
    assert share.epochs is not None
    return share.epochs * size


def planned_entries(portions: Sequence[Portion], sources: Mapping[str, Source]) -> dict[str, int | None]:
    """Returns how many entries come of each source before it has run out; None: endlessly many, or not known."""
    planned: dict[str, int | None] = {}
    for name, _, passes in portions:
        counts = None if passes is None else entry_counts(sources[name])
        planned[name] = None if passes is None or counts is None else passes.entries(int(counts.sum()))
    return planned


def choose(weights: Sequence[float], counts: Sequence[int]) -> int:
    """Returns which source to draw from next: the one furthest below its share, the first of equals.

    Args:
        weights: a positive weight for each source; their sum does not matter.
        counts: how many records each source gave so far.

    Of k sources none is ever 1 above its share of the draws, nor more than 1/2 + 1/3 + ... + 1/k below it; so over any
    stretch each is off by less than 1 + 1/2 + ... + 1/k, whatever the weights. (Before a draw the deficits sum to 1, so
    the largest is above 0. As in the cup game, the mean of the j largest is at most 1 / (j + 1) above that of the
    j + 1 largest, and the mean of all is 0.)
    """
    if len(weights) == 1:
        return 0
    total = sum(weights)
    drawn = sum(counts) + 1
    best, best_deficit = 0, float("-inf")
    for index, (weight, count) in enumerate(zip(weights, counts, strict=True)):
        deficit = weight / total * drawn - count
        if deficit > best_deficit:
            best, best_deficit = index, deficit
    return best


class Draws:
    """Which source is next while some of them run out."""

    def __init__(
        self, weights: Sequence[float], rule: Exhausted, counts: Sequence[int], run_out: Iterable[int] = ()
    ) -> None:
        """
        Args:
            weights: of the sources, positive.
            rule: what happens when one has run out.
            counts: how many records each gave so far.
            run_out: those that have.
        """
        self.counts = list(counts)
        self.run_out: set[int] = set()
        self._rule = rule
        self._weights = weights
        self._left = list(range(len(weights)))
        for source in run_out:
            self.end(source)

    def next(self) -> int | None:
        """Returns the source to draw from; None: the data have ended."""
        left = self._left
        if len(left) == len(self._weights):
            return choose(self._weights, self.counts)
        if not left:
            return None
        return left[choose([self._weights[source] for source in left], [self.counts[source] for source in left])]

    def end(self, source: int) -> None:
        """Says that a source has run out."""
        self.run_out.add(source)
        self._left = [] if self._rule == "stop" else [each for each in self._left if each != source]
