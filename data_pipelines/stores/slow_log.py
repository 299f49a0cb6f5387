"""Says that a store is slow or fails, once in a while, and counts what it does not say."""

import logging
import threading
import time
from collections.abc import Callable

LOGGER = logging.getLogger("data_pipelines")


class SlowLog:
    """At most one line in `seconds`, whichever thread it comes from."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._last: float | None = None
        self._untold = 0
        self._failures = 0

    def failed(self, sentence: str) -> None:
        """Counts a failure that another attempt follows, and says it if it is time."""
        with self._lock:
            self._failures += 1
        self.say(sentence)

    def say(self, sentence: str) -> None:
        with self._lock:
            now = self._clock()
            if self._last is not None and now - self._last < self._seconds:
                self._untold += 1
                return
            self._last, untold, self._untold = now, self._untold, 0
        LOGGER.warning(
            "the store is slow: %s%s", sentence, f" ({untold} such lines before are left out)" * (untold > 0)
        )

    def take_failures(self) -> int:
        """Failed attempts since the last call."""
        with self._lock:
            failures, self._failures = self._failures, 0
        return failures
