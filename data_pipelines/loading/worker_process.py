"""One of the loader's processes, as the process that started it has it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from data_pipelines.loading.shared_batches import SharedBatches
from data_pipelines.loading.work_order import WorkOrder
from data_pipelines.loading.worker import LEAVING_SECONDS
from data_pipelines.loading.worker_messages import error_from_json, log_again

_MODULE = "data_pipelines.loading.worker"


class WorkerProcess:
    """A fresh interpreter that builds the rows of some lanes; nothing of this process goes to it but an order.

    It ends when this process closes it or ends itself, in whatever way.
    """

    def __init__(self, name: str, memory: SharedBatches) -> None:
        """Starts it.

        Args:
            name: for errors.
            memory: into which it writes.
        """
        self.name = name
        self.cpu_seconds = 0.0
        """So far, as it said last."""
        self.packing_seconds = 0.0
        """Of these, of the thread that packs."""
        self.ended = False
        """Whether nothing comes any more."""
        self._answers: deque[dict[str, Any] | Exception] = deque()
        ours, theirs = socket.socketpair()
        self.socket = Connection(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(memory.descriptor)],
                pass_fds=(theirs.fileno(), memory.descriptor),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                # Ctrl-C is for the run, which ends its processes itself.
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def answered(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._answers)

    def give(self, order: WorkOrder) -> None:
        """Says what to build."""
        lanes = f"lane{'s' * (len(order.lanes) > 1)} {', '.join(map(str, order.lanes))}"
        self.name = f"{self.name} (process id {self.pid}, {lanes})"
        self._send(order.model_dump_json().encode())

    def free(self) -> None:
        """Says that the memory of one more batch may be written, in turn."""
        self._send(b"")

    def receive(self) -> None:
        """Takes in what has come.

        Raises:
            ChildProcessError: its end, and it has given no answer that is not taken yet; else that is the last answer.
        """
        try:
            told = json.loads(self.socket.recv_bytes())
        except (EOFError, OSError):
            self.ended = True
            end = self._end()
            if not self._answers:
                raise end from None
            self._answers.append(end)
            return
        if "log" in told:
            log_again(told["log"])
        elif "error" in told:
            self._answers.append(error_from_json(told["error"], self.name))
        else:
            self.cpu_seconds = told.get("cpu", 0.0)
            self.packing_seconds = told.get("packing", 0.0)
            self._answers.append(told)

    def take(self) -> dict[str, Any]:
        """Returns the next answer, or raises what it went wrong with."""
        answer = self._answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def let_go(self) -> None:
        """Tells it to end, without waiting."""
        self.socket.close()

    def wait(self) -> None:
        """Waits until it has ended, and not for long."""
        try:
            self._process.wait(LEAVING_SECONDS + 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send_bytes(data)
        except OSError:
            return  # It has ended, which `receive` notices, with what it said before.

    def _end(self) -> ChildProcessError:
        """Why it ended without having been told to."""
        self.wait()
        code = self._process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit code {code}"
        return ChildProcessError(
            f"{self.name} {how} (SIGKILL: from outside, or by the system for want of memory; else see above what it "
            "printed). Nothing is lost: started again, the run goes on where it was saved. If memory is short, lower "
            "data.processes, data.prefetch or data.threads."
        )


def _environment() -> dict[str, str]:
    """Of this process, with the same places to import from; every decoding thread multiplies its matrices alone."""
    places = os.pathsep.join(place for place in sys.path if place)
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": places}
