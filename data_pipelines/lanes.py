"""Lanes: deterministic, seekable streams of packed rows.

Lane i is a function of (config, seed, i) and of nothing else: its own order of shards, shuffle, mixture and packer.
"""

from collections.abc import Callable, Mapping
from itertools import chain, groupby, repeat
from typing import Any, NamedTuple

from data_pipelines.draws import Draws, Portion, portions_of
from data_pipelines.packing import Packer, Segment, fit
from data_pipelines.permutation import seed_of
from data_pipelines.quota import CUT, Skip, Tally, check_quota
from data_pipelines.record import Record
from data_pipelines.rendered import RenderedRecord, RenderError
from data_pipelines.source_stream import Deal, SourceStream
from data_pipelines.sources.source import Entry, Source
from data_pipelines.stream_config import StreamConfig
from data_pipelines.transforms.image_error import ImageError

Render = Callable[[Record], RenderedRecord]

FRUITLESS_LIMIT = 100_000
"""Entries of one source that a lane meets without a single usable record before it gives up."""


def rendered_or_skip(record: Record, render: Render) -> RenderedRecord | Skip:
    """Returns a record rendered, or why it cannot be."""
    try:
        return render(record)
    except RenderError as error:
        return Skip(error.cause, record.key, error.detail)
    except ImageError as error:
        return Skip(f"image_{error.cause}", record.key, error.detail)


class Gone(NamedTuple):
    """How far a lane has gone through a source."""

    met: int
    """Records, good and bad."""
    epochs: float
    """Of the lane's own part."""


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
        portions: tuple[Portion, ...] | None = None,
    ) -> None:
        """Opens lane `index` at its beginning, or where `state` says.

        Args:
            index: of the lane.
            config: of the stream.
            sources: by name, those of the mixture.
            render: record -> tokens.
            image_tokens: of an image that takes one slot.
            state: of a lane that stopped; None: the beginning.
            portions: what the mixture takes of these sources, where that is known already.

        Raises:
            ValueError: a record that waited is not what it was: the data or the chat template changed.
        """
        self._config = config
        self._names = config.names
        self._portions = portions or portions_of(config.mixture, sources)
        self._sources = tuple(sources[name] for name in self._names)
        self._render = render
        self._image_tokens = image_tokens
        self._index = index
        saved = state["sources"] if state else {}
        self._streams = tuple(
            self._stream(portion, source, saved.get(portion.name))
            for portion, source in zip(self._portions, self._sources, strict=True)
        )
        self._draws = Draws(
            weights=[portion.weight for portion in self._portions],
            rule=config.mixture.rule,
            counts=[int(saved[name]["good"]) if state else 0 for name in self._names],
            run_out=[number for number, name in enumerate(self._names) if state and saved[name].get("run_out")],
        )
        self._met = [int(saved[name]["met"]) if state else 0 for name in self._names]
        self._packer = Packer(config.row_length, config.images_per_row, config.open_rows)
        self.tally = Tally.from_json(state["tally"]) if state else Tally()
        self._skips: list[Skip] = []
        if state:
            self._restore_waiting(state["waiting"], state.get("waiting_epochs", []))

    def next_row(self) -> tuple[Segment, ...]:
        """Returns the segments of the next row; none where the lane has ended.

        Raises:
            QuotaExceededError: too many records were skipped on the way.
        """
        self._fill()
        return self._packer.take() if self._packer.waiting else ()

    @property
    def ended(self) -> bool:
        """Whether there is no further row; of a mixture that ends, this draws what the next row is chosen from."""
        if not self._config.mixture.ends:
            return False
        self._fill()
        return not self._packer.waiting

    def gone(self) -> dict[str, Gone]:
        """Returns how far the lane has gone through each source."""
        gone = map(Gone, self._met, (stream.epochs for stream in self._streams))
        return dict(zip(self._names, gone, strict=True))

    def take_skips(self) -> list[Skip]:
        """Returns what was skipped since the last call."""
        skips, self._skips = self._skips, []
        return skips

    def state(self) -> dict[str, Any]:
        """Returns where the lane stands, as small JSON: no token and no pixel, only places."""
        return {
            "sources": {
                name: stream.state()
                | {"good": self._draws.counts[number], "met": self._met[number]}
                | ({"run_out": True} if number in self._draws.run_out else {})
                for number, (name, stream) in enumerate(zip(self._names, self._streams, strict=True))
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

    def _stream(self, portion: Portion, source: Source, saved: dict[str, Any] | None) -> SourceStream:
        config = self._config
        seed = seed_of(config.seed, "source", portion.name)
        deal = Deal(source, seed, config.lanes * config.open_shards, portion.passes)
        strands = tuple(self._index + turn * config.lanes for turn in range(config.open_shards))
        return SourceStream(deal, strands, config.shuffle_window, saved)

    def _fill(self) -> None:
        """Draws until the packer may choose a row, or until the data have ended."""
        while not self._packer.ready:
            segment = self._draw()
            if segment is None:
                return
            self._packer.add(segment)

    def _draw(self) -> Segment | None:
        """Returns the next usable record of the source that the mixture is short of; None: the data have ended."""
        while True:
            chosen = self._draws.next()
            if chosen is None:
                return None
            segment = self._usable(chosen)
            if segment is not None:
                self._draws.counts[chosen] += 1
                return segment
            self._draws.end(chosen)

    def _usable(self, chosen: int) -> Segment | None:
        """Returns the next usable record of a source; None: it has run out."""
        for entry in self._streams[chosen]:
            self.tally.seen += 1
            self._met[chosen] += 1
            left_out: list[Skip] = []
            segment = self._segment(chosen, entry, left_out)
            for part in left_out:
                self._skip(part)
            if isinstance(segment, Segment):
                return segment
            self._skip(segment)
            self._refuse_fruitlessness(chosen)
        return None

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
        if self._draws.counts[source]:
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
