"""How often a source is gone through: whole epochs, and of the last one the first part."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-6
"""By how much a share of an epoch may miss a whole number of records because it is written in decimals."""


class UncountedError(ValueError):
    """How many records a source holds is asked for, and not known without a walk over all of it."""

    def __init__(self, wanted_by: str) -> None:
        super().__init__(
            f"{wanted_by}, but how many records the source holds is not known: run `mllm data index` on its shards"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Passes:
    """The epochs that a stream gives of a source before it has run out."""

    epochs: float
    """That were asked for."""
    ends: np.ndarray | None = None
    """i64[shards], how many entries of each shard come in the epoch after these, the first of its order; None: none."""

    @property
    def whole(self) -> int:
        """Epochs of which every entry comes."""
        return math.floor(self.epochs)

    @property
    def begun(self) -> int:
        """Epochs of which some entries come."""
        return self.whole + (self.ends is not None)

    def end(self, epoch: int, shard: int) -> int | None:
        """How many entries of a shard come in an epoch that is begun; None: all."""
        return None if epoch < self.whole or self.ends is None else int(self.ends[shard])

    def entries(self, count: int) -> int:
        """How many entries come in all, of a source that holds `count`."""
        return self.whole * count + (0 if self.ends is None else int(self.ends.sum()))


def passes_of(epochs: float, counts: Callable[[], np.ndarray | None]) -> Passes | None:
    """Returns the passes that a number of epochs asks for; None: it is infinite.

    Of N entries the last epoch gives floor(fraction * N), of every shard its share to within one.

    Args:
        epochs: more than 0.
        counts: i64[shards], the entries of each shard; None: they are not known.

    Raises:
        UncountedError: part of an epoch is asked for, and the counts are not known.
    """
    if math.isinf(epochs):
        return None
    whole = math.floor(epochs)
    if epochs == whole:
        return Passes(epochs)
    entries = counts()
    if entries is None:
        raise UncountedError(f"epochs = {epochs:g} ends inside an epoch")
    before = np.floor((epochs - whole) * np.concatenate([[0], np.cumsum(entries)]) + _ROUNDING)
    return Passes(epochs, np.diff(before).astype(np.int64))
