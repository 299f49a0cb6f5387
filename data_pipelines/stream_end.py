"""Where a stream ends: with the last row of the last lane, at the same batch on every process."""

from collections.abc import Callable
from typing import Any


class StreamEnd:
    """Follows the batches of a stream that ends."""

    def __init__(self, gather: Callable[[Any], list[Any]]) -> None:
        """
        Args:
            gather: from what one process says to what all say.
        """
        self._gather = gather
        self._more: bool | None = None
        """Whether there is a batch after the last one; None: there has been none yet."""

    def reached(self, holds: bool, more: bool) -> bool:
        """Whether the next batch lies behind the end; a collective where processes are gathered.

        Args:
            holds: whether a row that this process builds in the batch has a record.
            more: whether one of its lanes has a row left behind it.
        """
        if self._more is False:
            return True
        everywhere = self._gather([holds, more])
        ended = self._more is None and not any(map(any, everywhere))
        self._more = any(more for _, more in everywhere)
        return ended

    @property
    def last(self) -> bool:
        """Whether the batch that was asked for last is the last one."""
        return self._more is False
