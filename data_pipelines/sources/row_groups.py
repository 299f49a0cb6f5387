"""Rows of parquet files by their numbers: a row is read with its row group, and groups stay in memory up to a bound."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, TypeVar

from data_pipelines.quota import Skip
from data_pipelines.sources.stored_file import StoredFile
from data_pipelines.storage import Storage

GROUP_LIMIT = 1 << 32
"""Bytes that a row group may say it takes in memory; one that says more is not read."""

_OPEN_FILES = 64
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A parquet file whose footer was read."""

    path: str
    columns: tuple[str, ...]
    starts: tuple[int, ...]
    """For each row group the number of its first row, and the number of rows at last."""
    parquet: Any
    stored: StoredFile

    @property
    def rows(self) -> int:
        return self.starts[-1]


class RowGroups:
    """Reads rows, in one thread."""

    def __init__(self, columns: Sequence[str], memory_bytes: int, storage: Storage) -> None:
        """
        Args:
            columns: that every row has to have.
            memory_bytes: of the groups that are kept, besides the one that was read last.
            storage: what reads the files.

        Raises:
            ValueError: pyarrow is not installed.
        """
        try:
            import pyarrow.parquet
        except ImportError:
            raise ValueError("parquet files are read by pyarrow: pip install 'mllm_jax[parquet]'") from None
        self._parquet = pyarrow.parquet
        self._damages = (pyarrow.lib.ArrowException, OSError, UnicodeDecodeError)
        self._columns = list(columns)
        self._memory_bytes = memory_bytes
        self._storage = storage
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._held_bytes = 0
        self.open = lru_cache(maxsize=_OPEN_FILES)(self._open)

    def row(self, file: OpenFile, number: int, key: str) -> dict[str, Any] | Skip:
        """Returns the columns of a row, by name, or why they cannot be had.

        Raises:
            OSError: the file could not be read.
            ValueError: there is no such row.
        """
        missing = [name for name in self._columns if name not in file.columns]
        if missing:
            return Skip("missing_column", key, f"the file has no column {', '.join(missing)}")
        group = bisect_right(file.starts, number) - 1
        if group == len(file.starts) - 1:
            raise ValueError(f"{file.path} has {file.rows} rows, but row {number} was there: it was rewritten.")
        table = self._group(file, group, key)
        if isinstance(table, Skip):
            return table
        try:
            row: dict[str, Any] = table.slice(number - file.starts[group], 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            return Skip("not_utf8", key, str(error))
        except (ValueError, OverflowError) as error:
            return Skip("bad_value", key, str(error))
        return row

    def _open(self, path: str) -> OpenFile | Skip:
        stored = StoredFile(path, self._storage)

        def opened() -> OpenFile:
            parquet = self._parquet.ParquetFile(stored)
            metadata = parquet.metadata
            rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            starts = tuple(accumulate(rows, initial=0))
            return OpenFile(path, tuple(parquet.schema_arrow.names), starts, parquet, stored)

        return self._undamaged(opened, stored, "bad_parquet", path)

    def _group(self, file: OpenFile, group: int, key: str) -> Any:
        """A row group as a table, or the `Skip` of one that is damaged or too large."""
        held = self._groups.get((file.path, group))
        if held is not None:
            self._groups.move_to_end((file.path, group))
            return held
        size = file.parquet.metadata.row_group(group).total_byte_size
        if size > GROUP_LIMIT:
            return Skip(
                "row_group_too_large", key, f"group {group} takes {size} bytes; write the file in smaller groups"
            )
        read = partial(file.parquet.read_row_group, group, columns=self._columns)
        table = self._undamaged(read, file.stored, "bad_row_group", key)
        if isinstance(table, Skip):
            return table
        stated = file.starts[group + 1] - file.starts[group]
        if table.num_rows != stated:
            return Skip("bad_row_group", key, f"group {group} holds {table.num_rows} rows and states {stated}")
        self._keep((file.path, group), table)
        return table

    def _keep(self, place: tuple[str, int], table: Any) -> None:
        self._groups[place] = table
        self._held_bytes += table.nbytes
        while self._held_bytes > self._memory_bytes and len(self._groups) > 1:
            self._held_bytes -= self._groups.popitem(last=False)[1].nbytes

    def _undamaged(self, action: Callable[[], Result], stored: StoredFile, cause: str, key: str) -> Result | Skip:
        """What reading gives, or the `Skip` of bytes that are no good; raises if they could not be had."""
        try:
            return action()
        except self._damages as error:
            if stored.failure is not None:
                raise stored.failure from None
            return Skip(cause, key, str(error))
