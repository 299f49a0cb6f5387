"""What a process of the loader is told to build."""

from itertools import pairwise
from typing import Any

from data_pipelines.config_class import Config
from data_pipelines.loading.built_rows import Assignment
from data_pipelines.preparation_description import PreparationDescription
from data_pipelines.sources.choice import SourceConfig
from data_pipelines.storage import StorageConfig
from data_pipelines.stream_config import StreamConfig


class WorkOrder(Config):
    """Which rows a process builds, of what, and where it writes them; it goes there as JSON."""

    stream: StreamConfig
    sources: dict[str, SourceConfig]
    preparation: PreparationDescription
    storage: StorageConfig
    prefetch: int
    threads: int
    lanes: tuple[int, ...]
    rows_per_lane: int
    saved: dict[int, dict[str, Any]]
    """As `Assignment` has them."""
    first_row: int
    """Where its rows begin among those of all processes."""
    rows: int
    """Of all processes."""
    batches: int
    """That fit into the shared memory."""
    parent: int
    """The process that gives the order."""

    @property
    def assignment(self) -> Assignment:
        return Assignment(self.lanes, self.rows_per_lane, self.saved)

    def parts(self, processes: int) -> "list[WorkOrder]":
        """What each of some processes does of it: as many lanes as the others, or one more; at least one."""
        count = min(processes, len(self.lanes))
        ends = [len(self.lanes) * number // count for number in range(count + 1)]
        return [self._part(first, stop) for first, stop in pairwise(ends)]

    def _part(self, first: int, stop: int) -> "WorkOrder":
        lanes = self.lanes[first:stop]
        saved = {lane: self.saved[lane] for lane in lanes if lane in self.saved}
        first_row = self.first_row + first * self.rows_per_lane
        return self.model_copy(update={"lanes": lanes, "saved": saved, "first_row": first_row})
