"""Weighted blends as a pure function of what was drawn so far."""

from collections.abc import Sequence


def choose(weights: Sequence[float], counts: Sequence[int]) -> int:
    """Returns which source to draw from next: the one furthest below its share, the first of equals.

    Args:
        weights: a positive weight for each source; their sum does not matter.
        counts: how many records each source gave so far.

    After n draws every count is within one (two sources) or about log(sources) of n times its share, whatever the seed.
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
