"""Rows built in other processes, each of which has some of the lanes, and brought together in this one."""

from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from data_pipelines.batch import Batch
from data_pipelines.loading.built_rows import BuiltRows
from data_pipelines.loading.shared_batches import SharedBatches
from data_pipelines.loading.work_order import WorkOrder
from data_pipelines.loading.worker_messages import add_rows
from data_pipelines.loading.worker_process import WorkerProcess
from data_pipelines.positions import changes

_LOOKING_SECONDS = 0.1


class StoppedError(Exception):
    """The rows that are waited for are not wanted any more."""


class ProcessRows:
    """Builds the rows of some lanes, in processes that work ahead as far as the shared memory reaches.

    A batch is written there, and copied when all its rows are; only then may its memory be written again.
    """

    def __init__(
        self,
        order: WorkOrder,
        processes: int,
        one_row: Batch,
        fingerprint: dict[str, Any],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Starts the processes and waits until they have opened the sources.

        Args:
            order: all lanes.
            processes: that share them; at most one a lane.
            one_row: shapes and formats of a row's arrays [1, ...], which hold padding.
            fingerprint: of the stream, as this process finds it.
            stopped: whether rows are wanted no more; asked while they are waited for.

        Raises:
            ValueError: a process finds other data.
            OSError: there is not enough memory to share, or a process ended.
            Exception: what went wrong in a process.
        """
        self._stopped = stopped
        self._batches = order.batches
        self._turn = 0
        self._memory = SharedBatches(one_row, order.rows, order.batches)
        self._parts = order.parts(processes)
        self._workers: list[WorkerProcess] = []
        try:
            for number in range(1, len(self._parts) + 1):
                name = f"process {number} of {len(self._parts)} of the loader"
                self._workers.append(WorkerProcess(name, self._memory))
            for worker, part in zip(self._workers, self._parts, strict=True):
                worker.give(part)
            for worker, told in zip(self._workers, self._answers(), strict=True):
                _check_data(fingerprint, told["ready"], worker.name)
        except BaseException:
            self.close()
            raise

    @property
    def process_ids(self) -> tuple[int, ...]:
        return tuple(worker.pid for worker in self._workers)

    @property
    def cpu_seconds(self) -> float:
        """Of all processes so far, as they said with their last rows."""
        return sum(worker.cpu_seconds for worker in self._workers)

    @property
    def packing_seconds(self) -> float:
        """Of these, of the one thread of each that reads, renders, packs and places."""
        return sum(worker.packing_seconds for worker in self._workers)

    def __next__(self) -> BuiltRows:
        answers = self._answers()
        built = BuiltRows(
            self._memory.copy(self._turn % self._batches), [], [], {}, {}, False, False, failed_reads=0, records=None
        )
        self._turn += 1
        for worker in self._workers:
            worker.free()
        for part, told in zip(self._parts, answers, strict=True):
            add_rows(told["rows"], part.first_row, built)
        return built

    def close(self) -> None:
        """Ends the processes and lets go of the memory."""
        for worker in self._workers:
            worker.let_go()
        for worker in self._workers:
            worker.wait()
        self._memory.close()

    def _answers(self) -> list[dict[str, Any]]:
        """Waits for the next answer of every process; raises the first that is an error, the end of one at once."""
        while not all(worker.answered for worker in self._workers):
            sockets = {worker.socket: worker for worker in self._workers if not worker.ended}
            for ready in wait(list(sockets), _LOOKING_SECONDS):
                assert isinstance(ready, Connection)
                sockets[ready].receive()
            if self._stopped():
                raise StoppedError
        return [worker.take() for worker in self._workers]


def _check_data(here: dict[str, Any], there: dict[str, Any], name: str) -> None:
    different = changes(here, there)
    if different:
        raise ValueError(
            f"{name} finds other data than the process that started it: {'; '.join(different)}. Wait until nothing "
            "changes the shards any more, and start again."
        )
