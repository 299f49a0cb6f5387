"""What a loader hands out: a batch, where the stream stands after it, and what it holds."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.assemble import Placed
from data_pipelines.batch import Batch
from data_pipelines.loading.built_rows import Assignment, BuiltRows
from data_pipelines.positions import LanePositions
from data_pipelines.quota import Tally
from data_pipelines.source_report import SourceReport, source_reports
from data_pipelines.stream_config import StreamConfig


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch holds, of the rows of this process.

    A row that several processes build is counted by one of them, so that sums over all processes are those of the
    global batch.
    """

    records: int
    images: int
    """Image slots that hold an image or a tile."""
    skipped: Mapping[str, int]
    """Skips by cause since the batch before."""
    padding_share: float
    """Share of token places without a segment; this and the other shares are of all rows of this process."""
    supervised_share: float
    """Share of the segments' tokens that the loss covers."""
    image_slot_share: float
    """Share of image slots that hold an image or a tile; 0 without slots."""
    keys: tuple[str, ...]
    """Keys of the records, row by row."""
    tally: Tally = field(default_factory=Tally)
    """Records met and left out since the beginning of the stream."""
    failed_reads: int = 0
    """Reads of this process that failed since the batch before and were tried again."""
    sources: Mapping[str, SourceReport] = field(default_factory=dict)
    """What it has of each source of the mixture."""


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """A batch and where the stream stands after it."""

    batch: Batch
    position: LanePositions
    report: BatchReport
    records: tuple[Placed, ...] | None = None
    """What lies where in the rows of this process, row by row, those that were lost on the way too; None: processes of
    the loader built them, and know it."""
    holds: bool = True
    """Whether one of these rows has a record, be it one that was lost on the way."""
    last: bool = False
    """Whether the data end with it, on all processes."""


def report_of(
    built: BuiltRows,
    assignment: Assignment,
    counted: Collection[int],
    tally: Tally,
    config: StreamConfig,
    planned: Mapping[str, int | None],
) -> BatchReport:
    """Describes the rows of this process.

    Args:
        built: its rows.
        assignment: which they are.
        counted: the lanes among them that this process counts.
        tally: of these lanes.
        config: of the stream.
        planned: records that come of each source in all, where the stream ends.
    """
    batch = built.batch
    filled = int(np.count_nonzero(batch.segment_ids))
    counts = np.repeat([lane in counted for lane in assignment.lanes], assignment.rows_per_lane)
    ours = [(key, source) for row, key, source in built.keys if counts[row]]
    return BatchReport(
        records=len(ours),
        images=int(np.count_nonzero(batch.image_mask[counts])),
        skipped=dict(Counter(skip.cause for lane, skip in built.skips if lane in counted)),
        padding_share=1 - filled / batch.segment_ids.size,
        supervised_share=int(np.count_nonzero(batch.loss_weights)) / max(1, filled),
        image_slot_share=int(np.count_nonzero(batch.image_mask)) / max(1, batch.image_mask.size),
        keys=tuple(key for key, _ in ours),
        tally=tally,
        failed_reads=built.failed_reads,
        sources=source_reports(
            Counter(config.names[source] for _, source in ours),
            [gone for lane, gone in built.gone.items() if lane in counted],
            config.lanes,
            planned,
        ),
    )
