"""Batches in memory that several processes share: each writes some rows, and one reads all."""

import math
import mmap
import os
import tempfile
from types import TracebackType

import numpy as np

from data_pipelines.batch import Batch

_ALIGNMENT = 64


class SharedBatches:
    """Arrays of some batches, one after the other, in memory without a name.

    It is gone with the last process that has it open, however that ends, and counts against no limit of /dev/shm.
    """

    def __init__(self, one_row: Batch, rows: int, count: int, descriptor: int | None = None) -> None:
        """
        Args:
            one_row: shapes and formats of a row's arrays [1, ...], which hold padding.
            rows: of a batch.
            count: batches.
            descriptor: of another process's, made with the same arguments; None: makes a new one.

        Raises:
            OSError: there is not as much memory.
        """
        self._one_row = one_row
        self._rows = rows
        self._offsets: list[int] = []
        end = 0
        for array in one_row:
            self._offsets.append(end)
            end += 0 if array is None else -(-rows * array.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._bytes = end
        self.descriptor = _anonymous(end * count, count) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, end * count)

    def __enter__(self) -> "SharedBatches":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def views(self, number: int, first: int, stop: int) -> Batch:
        """The rows from `first` to before `stop` of a batch, as arrays of the shared memory itself."""
        start = number * self._bytes
        return Batch(
            *(
                None if row is None else self._array(row, start + offset)[first:stop]
                for row, offset in zip(self._one_row, self._offsets, strict=True)
            )
        )

    def padded(self, number: int, first: int, stop: int) -> Batch:
        """Likewise, all padding but for the pixels, which are what they were."""
        batch = self.views(number, first, stop)
        for name, array in batch._asdict().items():
            if array is not None and name != "images":
                array[...] = getattr(self._one_row, name)
        return batch

    def copy(self, number: int) -> Batch:
        """A whole batch, as arrays of this process alone."""
        return Batch(*(None if array is None else array.copy() for array in self.views(number, 0, self._rows)))

    def close(self) -> None:
        """Lets go of the memory; no view of it may be used any more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._memory = mmap.mmap(-1, 1)  # The former one ends with the last view of it.

    def _array(self, row: np.ndarray, offset: int) -> np.ndarray:
        return np.ndarray((self._rows, *row.shape[1:]), row.dtype, self._memory, offset)


def _anonymous(size: int, count: int) -> int:
    """A descriptor of so many bytes, which are there at once: without them a process would end at a write."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        raise OSError(
            error.errno,
            f"{math.ceil(size / 1e6)} MB of memory for {count} batches, which the loader's processes share, are not to "
            f"be had: {error.strerror}. Lower data.prefetch or the stage's rows or images_per_row, or set "
            "data.processes to 0",
        ) from None
    return descriptor
