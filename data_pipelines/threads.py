"""Work on many things in several threads, whose results come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AHEAD = 4
"""Things that each thread may be ahead of the one whose result is asked for."""

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def in_threads(work: Callable[[Thing], Result], things: Iterable[Thing], threads: int) -> Iterator[Result]:
    """Yields what `work` makes of each thing, in order; what it raises is raised in its turn."""
    left = iter(things)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(work, each) for each in islice(left, AHEAD * threads))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, each) for each in islice(left, 1))
        finally:
            for each in waiting:
                each.cancel()
