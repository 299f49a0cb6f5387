"""How full the rows of a stage are, and what of each source is in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.draws import portions_of
from data_pipelines.lanes import Lane, Render
from data_pipelines.packing import Segment
from data_pipelines.quota import QuotaExceededError, Tally, add_tallies, check_quota
from data_pipelines.sources.source import Source
from data_pipelines.statistics.histogram import Histogram
from data_pipelines.statistics.source_statistics import supervised_tokens
from data_pipelines.stream_config import StreamConfig

LANES = 4
"""Of a stream whose rows are looked at; all are packed alike."""

ROWS = 1000
"""Rows that are looked at, at most."""


@dataclass(slots=True)
class DrawnShare:
    """What rows hold of one source."""

    weight: float
    """Its share of records by the mixture."""
    records: int = 0
    tokens: int = 0
    image_slots: int = 0


@dataclass(slots=True)
class RowStatistics:
    """Counts over packed rows."""

    row_length: int
    images_per_row: int
    sources: dict[str, DrawnShare]
    tokens: Histogram = field(default_factory=Histogram)
    """Of a row, padding not among them."""
    image_slots: Histogram = field(default_factory=Histogram)
    """Of a row that hold an image or a tile."""
    records: Histogram = field(default_factory=Histogram)
    """Of a row."""
    supervised_tokens: int = 0
    refused: str | None = None
    """Why a run would stop for all that it skips; None: it would not."""

    @property
    def rows(self) -> int:
        return self.tokens.count

    @property
    def padding_share(self) -> float:
        """Share of token places without a token."""
        return 1 - self.tokens.total / max(self.rows * self.row_length, 1)

    @property
    def image_slot_share(self) -> float:
        """Share of image slots that hold an image or a tile; 0 without slots."""
        return self.image_slots.total / max(self.rows * self.images_per_row, 1)

    @property
    def supervised_share(self) -> float:
        """Share of the tokens that the loss covers."""
        return self.supervised_tokens / (self.tokens.total or 1)

    def add(self, row: Sequence[Segment]) -> None:
        """Counts a row."""
        self.tokens.add(sum(segment.tokens for segment in row))
        self.image_slots.add(sum(segment.images for segment in row))
        self.records.add(len(row))
        names = tuple(self.sources)
        for segment in row:
            drawn = self.sources[names[segment.source]]
            drawn.records += 1
            drawn.tokens += segment.tokens
            drawn.image_slots += segment.images
            self.supervised_tokens += supervised_tokens(segment.rendered)

    def to_json(self) -> dict[str, Any]:
        """Everything, for `stats.json`."""
        totals = (self.records.total, self.tokens.total, self.image_slots.total)
        return {
            "rows": self.rows,
            "padding_share": self.padding_share,
            "image_slot_share": self.image_slot_share,
            "supervised_share": self.supervised_share,
            "tokens": self.tokens.to_json(),
            "image_slots": self.image_slots.to_json(),
            "records": self.records.to_json(),
            "sources": {name: _shares(drawn, *totals) for name, drawn in self.sources.items()},
            "refused": self.refused,
        }


def _shares(drawn: DrawnShare, records: float, tokens: float, image_slots: float) -> dict[str, float]:
    return {
        "weight": drawn.weight,
        "records": drawn.records,
        "record_share": drawn.records / (records or 1),
        "token_share": drawn.tokens / (tokens or 1),
        "image_slot_share": drawn.image_slots / (image_slots or 1),
    }


def row_statistics(
    stream: StreamConfig,
    sources: Mapping[str, Source],
    render: Render,
    image_tokens: int,
    records: int,
    bad_images: Mapping[str, float] | None = None,
) -> RowStatistics:
    """Packs rows as a run does, of its first lanes, and counts them.

    Args:
        stream: of the stage.
        sources: those that its mixture draws from.
        render: of the stage.
        image_tokens: of an image that takes one slot.
        records: after how many it is enough; there is a row of every lane that is looked at, and never more than
            `ROWS`.
        bad_images: by source, the share of records with an image that cannot be decoded, which quotas count too.

    Raises:
        ValueError: a source gives no usable record.
    """
    # Rows of a stream that ends are those of one that does not, up to the end.
    mixture = stream.mixture.endless
    portions = portions_of(mixture, sources)
    total = sum(portion.weight for portion in portions)
    weights = {portion.name: DrawnShare(portion.weight / total) for portion in portions}
    found = RowStatistics(stream.row_length, stream.images_per_row, weights)
    # What the quotas say is told at the end: whoever asks wants to see all that is wrong.
    lenient = stream.model_copy(update={"mixture": mixture, "skip_quota": 1.0, "unfit_quota": 1.0})
    lanes = [
        Lane(index, lenient, sources, render, image_tokens, portions=portions)
        for index in range(min(LANES, stream.lanes))
    ]
    for row in _rows_in_turn(lanes):
        found.add(row)
        if found.rows >= ROWS or (found.rows % len(lanes) == 0 and found.records.total >= records):
            break
    tally = add_tallies(lane.tally for lane in lanes)
    bad = sum(share * weights[name].records for name, share in (bad_images or {}).items())
    tally.skipped.update({"image_bad": round(bad)} if round(bad) else {})
    found.refused = _refusal(stream, tally)
    return found


def _rows_in_turn(lanes: Sequence[Lane]) -> Iterator[tuple[Segment, ...]]:
    while True:
        for lane in lanes:
            yield lane.next_row()


def _refusal(stream: StreamConfig, tally: Tally) -> str | None:
    try:
        check_quota([tally], stream.skip_quota, stream.unfit_quota)
    except QuotaExceededError as error:
        return str(error)
    return None
