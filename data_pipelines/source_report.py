"""What a batch has of each source of a mixture, and how far the stream has gone through it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipelines.lanes import Gone


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What the lanes that a process counts have of one source; sums over all processes are those of the stream."""

    records: int
    """In the batch."""
    met: int
    """Since the beginning of the stream, good and bad."""
    epochs: float
    """Gone through since then, each lane's part of the source as the share of all lanes that it is."""


def source_reports(records: Counter[str], lanes: Sequence[Mapping[str, Gone]], of: int) -> dict[str, SourceReport]:
    """Returns the report of each source.

    Args:
        records: in the batch, by source.
        lanes: how far each of the counted lanes has gone through each source.
        of: lanes of the stream.
    """
    return {
        name: SourceReport(
            records[name], sum(lane[name].met for lane in lanes), sum(lane[name].epochs for lane in lanes) / of
        )
        for name in (lanes[0] if lanes else ())
    }
