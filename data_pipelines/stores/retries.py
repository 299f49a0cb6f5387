"""Tries a failing read again: waits that grow, are spread by chance, and end after a bounded time."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from data_pipelines.stores.errors import PERMANENT

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long. The spread is no part of a run's seed: it decides when bytes come, never which."""

    attempts: int
    """In all."""
    first_wait: float
    """Seconds before the second attempt; each later wait is twice the one before, and up to half more by chance."""
    longest_wait: float
    """Seconds."""
    give_up: float
    """Seconds after the beginning of the first attempt at which no other is begun."""
    failed: Callable[[str], None] = lambda sentence: None
    """Is told of every failure that another attempt follows."""
    pause: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def run(self, action: Callable[[], Result], what: str) -> Result:
        """Returns what `action` returns in the end.

        Raises:
            OSError: of the same class for what is not worth an attempt more, otherwise naming `what` (a path and a
                range), the attempts, the seconds and the last error.
        """
        began, attempt = self.clock(), 0
        while True:
            attempt += 1
            try:
                return action()
            except PERMANENT as error:
                raise type(error)(f"could not read {what}: {error.strerror or error}") from error
            except OSError as error:
                wait = min(self.first_wait * 2 ** (attempt - 1), self.longest_wait) * random.uniform(1.0, 1.5)
                passed, told = self.clock() - began, str(error) or type(error).__name__
                if attempt >= self.attempts or passed + wait > self.give_up:
                    raise OSError(
                        f"could not read {what} in {attempt} attempts and {passed:.1f} s; the last error was: {told}"
                    ) from error
                self.failed(f"attempt {attempt} to read {what} failed ({told})")
                self.pause(wait)
