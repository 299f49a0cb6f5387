"""A process of the loader: builds the rows of some lanes into shared memory, until nobody wants more.

`WorkerProcess` starts it, as an interpreter of its own: SOCKET MEMORY, the descriptors by which it is told what to do
and answers, and of the shared memory.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from data_pipelines.batch import Batch
from data_pipelines.loading.shared_batches import SharedBatches
from data_pipelines.loading.threaded_rows import ThreadedRows, empty_rows
from data_pipelines.loading.work_order import WorkOrder
from data_pipelines.loading.worker_messages import error_to_json, log_to_json, rows_to_json
from data_pipelines.positions import fingerprint
from data_pipelines.sources.opening import open_sources
from data_pipelines.storage import Storage

_LOOKING_SECONDS = 1.0
"""How often a process looks whether the one that started it is there, should a third one hold its socket open."""

LEAVING_SECONDS = 5.0
"""That a process has to end in when nobody wants its rows; then it ends at once."""


class _NotWantedError(Exception):
    """The process that asks for rows has closed the socket, or is gone."""


class _Parent:
    """The process that asks for rows."""

    def __init__(self, socket: Connection) -> None:
        self._socket = socket
        self._writing = threading.Lock()
        self._free: queue.Queue[bool] = queue.Queue()
        self._storage: Storage | None = None

    def order(self) -> WorkOrder:
        """What it wants; from here on its end is noticed."""
        try:
            told = self._socket.recv_bytes()
        except (EOFError, OSError):
            raise _NotWantedError from None
        order = WorkOrder.model_validate_json(told)
        for _ in range(order.batches):
            self._free.put(True)
        threading.Thread(target=self._listen, args=(order.parent,), name="parent", daemon=True).start()
        return order

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message, from any thread."""
        data = json.dumps(message).encode()
        try:
            with self._writing:
                self._socket.send_bytes(data)
        except OSError:
            raise _NotWantedError from None

    def wait_for_memory(self) -> None:
        """Waits until a batch of the shared memory may be written that is next in turn."""
        if not self._free.get():
            raise _NotWantedError

    def close_in_time(self, storage: Storage) -> None:
        """Has a storage closed when the parent is gone, so that nobody waits for a store that does not answer."""
        self._storage = storage

    def _listen(self, parent: int) -> None:
        with contextlib.suppress(EOFError, OSError):
            while self._socket.poll(_LOOKING_SECONDS) or os.getppid() == parent:
                if self._socket.poll():
                    self._socket.recv_bytes()
                    self._free.put(True)
        threading.Thread(target=_end_at_last, daemon=True).start()
        self._free.put(False)
        if self._storage is not None:
            self._storage.close()


def _end_at_last() -> None:
    """Whatever else hangs."""
    time.sleep(LEAVING_SECONDS)
    os._exit(1)


class _LogOfParent(logging.Handler):
    """Has the parent write what is logged here."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(_NotWantedError):
            self._parent.tell({"log": log_to_json(record)})


def _build(order: WorkOrder, parent: _Parent, memory: int) -> None:
    """Builds rows until they are not wanted."""
    storage = Storage(order.storage)
    parent.close_in_time(storage)
    preparation = order.preparation.prepare(storage)
    sources = open_sources(order.stream, order.sources, storage)
    first, stop = order.first_row, order.first_row + order.assignment.rows
    shared = SharedBatches(empty_rows(order.stream, preparation, 1), order.rows, order.batches, memory)
    turn = 0

    def next_rows() -> Batch:
        nonlocal turn
        parent.wait_for_memory()
        turn += 1
        return shared.padded((turn - 1) % order.batches, first, stop)

    work = order.prefetch, order.threads
    rows = ThreadedRows(order.stream, sources, preparation, order.assignment, storage, *work, next_rows)
    try:
        parent.tell({"ready": fingerprint(order.stream, sources, preparation.image_tokens, preparation.tiling)})
        while True:
            built = rows_to_json(next(rows))
            parent.tell({"rows": built, "cpu": time.process_time(), "packing": time.thread_time()})
    finally:
        storage.close()  # Who waits for a store that does not answer is let go.
        rows.close()


def main(socket: int, memory: int) -> None:
    # A run that is told to stop still makes the batches that it needs until then, and ends this process itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Connection(socket) as connection:
        parent = _Parent(connection)
        logging.getLogger().addHandler(_LogOfParent(parent))
        try:
            _build(parent.order(), parent, memory)
        except _NotWantedError:
            return
        except Exception as error:
            with contextlib.suppress(_NotWantedError):
                parent.tell({"error": error_to_json(error)})


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
