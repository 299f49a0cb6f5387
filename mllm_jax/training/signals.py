"""Being told to stop: finish the step, save, leave."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

STOPPED_EXIT_CODE = 75
"""Exit code of a run that was told to stop and has saved (EX_TEMPFAIL of sysexits.h): run the same command again."""


class StopRequest:
    """Whether SIGTERM (or a first Ctrl-C) has come, agreed upon by all processes.

    A lone process handles the signals itself. In a group, JAX's preemption service passes the notice on and picks a
    step that every process still reaches. A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._requested = False
        self._asked = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def requested(self) -> bool:
        """Whether to stop now; all processes must ask equally often, and get the same answer."""
        self._asked += 1
        if jax.process_count() > 1:
            agreed = multihost_utils.reached_preemption_sync_point(self._asked)
            self._requested = self._requested or agreed
        return self._requested
