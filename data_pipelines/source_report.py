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
    planned: int | None = None
    """How many records, good and bad, its epochs have in all lanes together, told where a stream ends and if known."""


def source_reports(
    records: Counter[str], lanes: Sequence[Mapping[str, Gone]], of: int, planned: Mapping[str, int | None]
) -> dict[str, SourceReport]:
    """Returns the report of each source.

    Args:
        records: in the batch, by source.
        lanes: how far each of the counted lanes has gone through each source.
        of: lanes of the stream.
        planned: records that come of each source in all.
    """
    return {
        name: SourceReport(
            records=records[name],
            met=sum(lane[name].met for lane in lanes),
            epochs=sum(lane[name].epochs for lane in lanes) / of,
            planned=planned.get(name),
        )
        for name in (lanes[0] if lanes else ())
    }
