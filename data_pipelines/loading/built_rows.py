"""The rows of some lanes, whoever builds them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data_pipelines.assemble import Placed
from data_pipelines.batch import Batch
from data_pipelines.lanes import Gone
from data_pipelines.quota import Skip, Tally, add_tallies

LaneState = dict[str, Any]
"""Where a lane stands, as JSON: the `lane`'s own state, and how many of its images were `undecodable`, by cause."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which lanes are built, and where they begin."""

    lanes: tuple[int, ...]
    """Ascending; row r of what is built belongs to the lane at place r // rows_per_lane."""
    rows_per_lane: int
    saved: Mapping[int, LaneState]
    """By lane, where it goes on; those that are not in it start at their beginning."""

    @property
    def rows(self) -> int:
        """Of all lanes."""
        return len(self.lanes) * self.rows_per_lane


@dataclass(slots=True)
class BuiltRows:
    """The rows of one batch."""

    batch: Batch
    """NumPy arrays."""
    keys: list[tuple[int, str, int]]
    """Row, key and number of the source of every record that is there, row by row."""
    skips: list[tuple[int, Skip]]
    """What was left out since the batch before, with its lane; lane by lane."""
    states: dict[int, LaneState]
    """By lane, where it stands after this batch."""
    gone: dict[int, dict[str, Gone]]
    """By lane, how far it has gone through each source."""
    holds: bool
    """Whether a row has a record, be it one that was lost on the way."""
    more: bool
    """Whether one of the lanes has a row left."""
    failed_reads: int
    """Since the batch before."""
    records: tuple[Placed, ...] | None
    """What lies where, row by row, those that were lost on the way too; None: other processes know."""


class RowBuilder(Protocol):
    """Builds the rows of batch after batch, ahead of what is asked for."""

    @property
    def process_ids(self) -> Sequence[int]:
        """Of the processes that do it beside this one."""

    @property
    def cpu_seconds(self) -> float:
        """That they took so far."""

    @property
    def packing_seconds(self) -> float:
        """Of these, that the threads took that read, render, pack and place."""

    def __next__(self) -> BuiltRows:
        """The rows of the next batch; what goes wrong is raised in its turn, after the batches before it."""

    def close(self) -> None:
        """Ends what works; whoever waits for rows is let go with an error."""


def state_tally(state: LaneState) -> Tally:
    """What a lane has met and left out, images that could not be decoded among it."""
    return add_tallies([Tally.from_json(state["lane"]["tally"]), Tally(skipped=Counter(state["undecodable"]))])
