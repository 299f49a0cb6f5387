"""Lanes: deterministic, seekable streams of packed rows.

Lane i is a function of (config, seed, i) and of nothing else: its own order of shards, shuffle, mixture and packer.
"""

from collections.abc import Callable, Mapping
from itertools import chain, groupby, repeat
from typing import Any

from pydantic import Field, field_validator

from data_pipelines.config_class import Config
from data_pipelines.mixture import choose
from data_pipelines.packing import Overlong, Packer, Segment, fit
from data_pipelines.permutation import seed_of
from data_pipelines.quota import CUT, Skip, Tally, check_quota
from data_pipelines.record import Record
from data_pipelines.rendered import RenderedRecord, RenderError
from data_pipelines.source_stream import Deal, SourceStream
from data_pipelines.sources.source import Entry, Source
from data_pipelines.transforms.image_error import ImageError

Render = Callable[[Record], RenderedRecord]

FRUITLESS_LIMIT = 100_000
"""Entries of one source that a lane meets without a single usable record before it gives up."""


class LaneConfig(Config):
    """How lanes draw, shuffle and pack; the same for all streams of a run."""

    lanes: int = Field(default=8, gt=0)
    """Deterministic streams that the rows come from; a batch's rows must divide by it. Hosts and devices may change."""
    seed: int = Field(default=0, ge=0)
    """Seed of every order."""
    shuffle_window: int = Field(default=1000, gt=0)
    """Records, a lane and source, that are shuffled together."""
    open_shards: int = Field(default=2, gt=0)
    """Shards that a lane reads in turn, a source."""
    open_rows: int = Field(default=16, gt=0)
    """Rows' worth of records, a lane, among which the packer chooses; more fill rows better."""
    overlong: Overlong = "drop"
    """What happens to a record longer than a row: dropped; the text behind its last image cut (`cut`); or ended before
    its first image that does not fit (`cut_images`). All are counted."""
    skip_quota: float = Field(default=0.01, ge=0, le=1)
    """Share of records that may be bad before the run stops."""
    unfit_quota: float = Field(default=0.25, ge=0, le=1)
    """Share of records that may be dropped because they do not fit a row before the run stops."""


class StreamConfig(LaneConfig):
    """What a stream of packed rows depends on; a run cannot go on with another value of any of it."""

    mixture: dict[str, float]
    """Source name -> weight; shares of records, the sum does not matter, 0 leaves a source out."""
    row_length: int = Field(default=2048, gt=1)
    """Tokens of a row."""
    images_per_row: int = Field(default=4, ge=0)
    """Image slots of a row."""

    @field_validator("mixture")
    @classmethod
    def _positive(cls, mixture: dict[str, float]) -> dict[str, float]:
        wrong = {name: weight for name, weight in mixture.items() if not 0 <= weight < float("inf")}
        if wrong or not any(mixture.values()):
            raise ValueError(f"weights are finite, at least 0 and not all 0; found {wrong or mixture}")
        return mixture

    @property
    def weights(self) -> dict[str, float]:
        """The sources that are drawn from, by name."""
        return {name: weight for name, weight in self.mixture.items() if weight > 0}


def rendered_or_skip(record: Record, render: Render) -> RenderedRecord | Skip:
    """Returns a record rendered, or why it cannot be."""
    try:
        return render(record)
    except RenderError as error:
        return Skip(error.cause, record.key, error.detail)
    except ImageError as error:
        return Skip(f"image_{error.cause}", record.key, error.detail)


class Lane:
    """One deterministic stream of rows."""

    def __init__(
        self,
        index: int,
        config: StreamConfig,
        sources: Mapping[str, Source],
        render: Render,
        image_tokens: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens lane `index` at its beginning, or where `state` says.

        Raises:
            ValueError: a record that waited is not what it was: the data or the chat template changed.
        """
        self._config = config
        self._names = tuple(config.weights)
        self._weights = tuple(config.weights.values())
        self._sources = tuple(sources[name] for name in self._names)
        self._render = render
        self._image_tokens = image_tokens
        self._index = index
        saved = state["sources"] if state else {}
        self._streams = tuple(self._stream(name, sources[name], saved.get(name)) for name in self._names)
        self._counts = [int(saved[name]["good"]) if state else 0 for name in self._names]
        self._met = [int(saved[name]["met"]) if state else 0 for name in self._names]
        self._packer = Packer(config.row_length, config.images_per_row, config.open_rows)
        self.tally = Tally.from_json(state["tally"]) if state else Tally()
        self._skips: list[Skip] = []
        if state:
            self._restore_waiting(state["waiting"], state.get("waiting_epochs", []))

    def next_row(self) -> tuple[Segment, ...]:
        """Returns the segments of the next row.

        Raises:
            QuotaExceededError: too many records were skipped on the way.
        """
        while not self._packer.ready:
            self._packer.add(self._draw())
        return self._packer.take()

    def take_skips(self) -> list[Skip]:
        """Returns what was skipped since the last call."""
        skips, self._skips = self._skips, []
        return skips

    def state(self) -> dict[str, Any]:
        """Returns where the lane stands, as small JSON: no token and no pixel, only places."""
        return {
            "sources": {
                name: stream.state() | {"good": good, "met": met}
                for name, stream, good, met in zip(self._names, self._streams, self._counts, self._met, strict=True)
            },
            "waiting": [
                number
                for segment in self._packer.waiting
                for number in (segment.source, segment.shard, segment.place, segment.tokens)
            ],
            "waiting_epochs": [
                [epoch, len(list(run))] for epoch, run in groupby(each.epoch for each in self._packer.waiting)
            ],
            "tally": self.tally.to_json(),
        }

    def _stream(self, name: str, source: Source, saved: dict[str, Any] | None) -> SourceStream:
        config = self._config
        deal = Deal(source, seed_of(config.seed, "source", name), config.lanes * config.open_shards)
        strands = tuple(self._index + turn * config.lanes for turn in range(config.open_shards))
        return SourceStream(deal, strands, config.shuffle_window, saved)

    def _draw(self) -> Segment:
        """Returns the next usable record of the source that the mixture is short of."""
        chosen = choose(self._weights, self._counts)
        while True:
            entry = next(self._streams[chosen])
            self.tally.seen += 1
            self._met[chosen] += 1
            left_out: list[Skip] = []
            segment = self._segment(chosen, entry, left_out)
            for part in left_out:
                self._skip(part)
            if isinstance(segment, Segment):
                self._counts[chosen] += 1
                return segment
            self._skip(segment)
            self._refuse_fruitlessness(chosen)

    def _segment(self, source: int, entry: Entry, left_out: list[Skip]) -> Segment | Skip:
        """The segment of an entry, or why there is none; what is left out of its record is added to `left_out`."""
        record = self._sources[source].read(entry)
        if isinstance(record, Skip):
            return record
        left_out.extend(record.left_out)
        whole = rendered_or_skip(record, self._render)
        if isinstance(whole, Skip):
            return whole
        config = self._config
        rendered = fit(whole, config.row_length, config.images_per_row, self._image_tokens, config.overlong)
        if isinstance(rendered, Skip):
            return rendered
        if rendered.length < whole.length:
            images = len(whole.images) - len(rendered.images)
            cut = f"{whole.length - rendered.length} of {whole.length} tokens and {images} images are cut off"
            left_out.append(Skip(CUT, record.key, cut))
        return Segment(rendered, source, entry.shard, entry.place, entry.epoch)

    def _skip(self, skip: Skip) -> None:
        self._skips.append(skip)
        self.tally.skipped[skip.cause] += 1
        check_quota((self.tally,), self._config.skip_quota, self._config.unfit_quota)

    def _refuse_fruitlessness(self, source: int) -> None:
        if self._counts[source]:
            return
        if self._met[source] >= FRUITLESS_LIMIT or self._streams[source].exhausted:
            raise ValueError(
                f"Source {self._names[source]!r} gave no usable record in {self._met[source]} that lane {self._index} "
                f"met; skipped by cause: {dict(self.tally.skipped)}. Check the source's config against its shards."
            )

    def _restore_waiting(self, numbers: list[int], runs: list[list[int]]) -> None:
        """Reads the records again that waited for a row when the state was taken.

        Args:
            numbers: source, shard, place and tokens of each.
            runs: their epochs, each with how many follow one another; none: they are not known.
        """
        epochs = chain((epoch for epoch, count in runs for _ in range(count)), repeat(0))
        columns = (numbers[column::4] for column in range(4))
        for (source, shard, place, tokens), epoch in zip(zip(*columns, strict=True), epochs, strict=False):
            entry = self._sources[source].locate(shard, place)._replace(epoch=epoch)
            segment = self._segment(source, entry, left_out=[])
            if isinstance(segment, Skip) or segment.tokens != tokens:
                found = segment.detail if isinstance(segment, Skip) else f"{segment.tokens} tokens"
                raise ValueError(
                    f"The record at {self._sources[source].shards[shard]}, place {place}, had {tokens} tokens when the "
                    f"position was saved and now gives {found}: the shard, the chat template or the tokenizer "
                    "changed, so the stream cannot go on."
                )
            self._packer.add(segment)
