"""Lanes to batches: rows are packed in one thread, images decoded in several, whole batches prefetched."""

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.assemble import Placed, empty_batch, erase, place_row
from data_pipelines.batch import Batch
from data_pipelines.draws import planned_entries, portions_of
from data_pipelines.gathering import gather_json
from data_pipelines.lanes import Gone, Lane, Render
from data_pipelines.packing import Segment
from data_pipelines.permutation import seed_of
from data_pipelines.positions import LanePositions, fingerprint
from data_pipelines.quota import Skip, SkipLog, Tally, add_tallies, check_quota
from data_pipelines.source_report import SourceReport, source_reports
from data_pipelines.sources.source import Source
from data_pipelines.storage import Storage
from data_pipelines.stream_config import StreamConfig
from data_pipelines.stream_end import StreamEnd
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.tiles import TiledImages

if TYPE_CHECKING:
    from jax.sharding import NamedSharding

_TASKS_PER_THREAD = 4


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a stage makes tokens and pixels of a record."""

    render: Render
    decode: Callable[[bytes], np.ndarray]
    """Encoded image -> u8[H, W, 3]; raises `ImageError` for bytes that are no image."""
    image_tokens: int
    """Tokens that the image of one slot takes in the decoder."""
    image_size: tuple[int, int]
    """(H, W) in pixels of a slot: of what `decode` returns, or of a tile."""
    tiled: TiledImages | None = None
    """Takes the place of `decode` where images are tiled, and `render` gives records with layouts."""
    instruction_tokens: int = 0
    """Longest instruction of an image, which `render` gives records; 0: it gives none."""
    preferences: bool = False
    """Whether `render` gives preference pairs."""
    references: bool = False
    """Whether it gives them with the scores of a reference model."""
    augment: Callable[[bytes, int], np.ndarray] | None = None
    """Takes the place of `decode` where a stage changes images at random, and has the image's seed besides."""


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
    records: tuple[Placed, ...] = ()
    """What lies where in the rows that this process builds, row by row, those that were lost on the way too."""
    last: bool = False
    """Whether the data end with it, on all processes."""


@dataclass(slots=True)
class _Job:
    """A batch whose images are being decoded."""

    batch: Batch
    placed: list[Placed]
    decoded: list[Future[list[tuple[int, ImageError]]]]
    states: dict[int, dict[str, Any]]
    tallies: list[Tally]
    skips: list[tuple[int, Skip]]
    """With their lanes."""
    gone: list[dict[str, Gone]]
    """How far each lane has gone through each source."""
    more: bool
    """Whether a lane of this process has a row left."""


class Loader:
    """Iterates batches of the stream: endlessly, or until every lane of a mixture that ends has ended.

    A lane that ends before the others gives rows of padding until they have, so no record is lost and shapes stay.
    The batches depend on `config`, `sources` and `preparation` alone: not on threads, prefetching or processes. An
    error in a thread is raised by `next`; after it, or after `close`, the loader is done.
    """

    def __init__(
        self,
        config: StreamConfig,
        sources: Mapping[str, Any],
        preparation: Preparation,
        rows: int,
        sharding: "NamedSharding | None" = None,
        position: Mapping[str, Any] | None = None,
        prefetch: int = 2,
        threads: int = 2,
        lanes: Sequence[int] | None = None,
        storage: Storage | None = None,
    ) -> None:
        """Opens the sources and starts to prefetch.

        Args:
            config: of the stream.
            sources: name -> `SourceConfig`; the mixture's names must be among them.
            preparation: template, decoder and sizes.
            rows: B of the global batch; a multiple of `config.lanes`.
            sharding: of token arrays over the mesh; None: NumPy batches of all rows.
            position: JSON of `LanePositions` with all lanes; the stream goes on after that batch.
            prefetch: batches decoded ahead.
            threads: that decode.
            lanes: whose rows are built where no sharding says it, ascending, to look at some rows of a large batch
                without making it; None: all.
            storage: what reads shards and images; closed with the loader. None: one of the defaults.

        Raises:
            ValueError: rows do not divide into lanes, a mixture's source is not there or not counted where its share
                depends on that, or the position is another's.
            FileNotFoundError: a source names no shard.
        """
        if rows % config.lanes:
            raise ValueError(
                f"rows = {rows} must be a multiple of lanes = {config.lanes}, so that each lane fills as many"
            )
        self._config = config
        self._preparation = preparation
        self._rows = rows
        self._sharding = sharding
        self._rows_per_lane = rows // config.lanes
        self._names = config.names
        self._storage = storage or Storage()
        opened = open_sources(config, sources, self._storage)
        tiling = None if preparation.tiled is None else preparation.tiled.fingerprint()
        self._fingerprint = fingerprint(config, opened, preparation.image_tokens, tiling)
        self._lanes, self._counted = _own_lanes(sharding, rows, config.lanes, lanes)
        saved = self._saved_lanes(position)
        portions, stage = portions_of(config.mixture, opened), (preparation.render, preparation.image_tokens)
        self._streams = [
            Lane(lane, config, opened, *stage, saved.get(lane, {}).get("lane"), portions) for lane in self._lanes
        ]
        alone = sharding is None
        self._planned = cache(lambda: planned_entries(portions, opened))
        self._end = StreamEnd((lambda told: [told]) if alone else gather_json) if config.mixture.ends else None
        self._undecodable = [Tally(skipped=Counter(saved.get(lane, {}).get("undecodable", {}))) for lane in self._lanes]
        self._log = SkipLog()
        self._start(max(1, prefetch), max(1, threads))

    def __iter__(self) -> Iterator[LoadedBatch]:
        return self

    def __next__(self) -> LoadedBatch:
        if self._closed.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        if self._end is None:
            return item
        if self._end.reached(bool(item.records), not item.last):
            raise StopIteration
        return replace(item, last=self._end.last)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_quota(self, tallies: Iterable[Tally]) -> None:
        """Raises when the tallies of all processes together pass a quota of the config.

        A loader of all lanes checks this itself at every batch. With several processes, who trains gathers the tallies
        of their reports now and then: what one process reads is no measure, or the same data could be too bad for one
        number of processes and good enough for another.

        Raises:
            QuotaExceededError: with the counts by cause.
        """
        check_quota(tallies, self._config.skip_quota, self._config.unfit_quota)

    def packing_seconds(self) -> float | None:
        """CPU seconds so far of the one thread that reads, renders, packs and places; None where no clock tells."""
        if not hasattr(time, "pthread_getcpuclockid") or self._producer.ident is None:
            return None
        return time.clock_gettime(time.pthread_getcpuclockid(self._producer.ident))

    def close(self) -> None:
        """Stops the threads and waits for them."""
        self._closed.set()
        while self._producer.is_alive():
            self._drain()
            self._producer.join(timeout=0.05)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._storage.close()

    def _saved_lanes(self, position: Mapping[str, Any] | None) -> dict[int, dict[str, Any]]:
        """The states of a position's lanes, after its check against this stream; none without a position."""
        if position is None:
            return {}
        restored = LanePositions.from_json(position)
        restored.check(self._fingerprint, self._lanes)
        return restored.lanes

    def _start(self, prefetch: int, threads: int) -> None:
        self._tasks = threads * _TASKS_PER_THREAD
        self._closed = threading.Event()
        self._ready: queue.Queue[LoadedBatch | BaseException] = queue.Queue(maxsize=1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._producer = threading.Thread(target=self._produce, args=(prefetch,), name="loader", daemon=True)
        self._producer.start()

    def _produce(self, prefetch: int) -> None:
        """Keeps `prefetch` batches in decoding and hands them out in order; an error comes after what is before it."""
        jobs: deque[_Job] = deque()
        failure: BaseException | None = None
        try:
            while not self._closed.is_set():
                while len(jobs) < prefetch and failure is None:
                    try:
                        jobs.append(self._begin())
                    except Exception as error:
                        failure = error
                if failure is not None and not jobs:
                    raise failure
                self._hand_out(self._finish(jobs.popleft()))
        except BaseException as error:
            self._hand_out(error)

    def _hand_out(self, item: LoadedBatch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _drain(self) -> None:
        while not self._ready.empty():
            self._ready.get_nowait()

    def _begin(self) -> _Job:
        """Packs the next row of every lane as often as needed and starts to decode their images."""
        config, preparation = self._config, self._preparation
        rows = len(self._lanes) * self._rows_per_lane
        sizes = preparation.image_size, preparation.instruction_tokens
        compared = preparation.preferences, preparation.references
        batch = empty_batch(rows, config.row_length, config.images_per_row, *sizes, *compared)
        placed: list[Placed] = []
        skips: list[tuple[int, Skip]] = []
        more = False
        for order, (lane, stream) in enumerate(zip(self._lanes, self._streams, strict=True)):
            for turn in range(self._rows_per_lane):
                index = order * self._rows_per_lane + turn
                placed += place_row(batch, index, stream.next_row(), preparation.image_tokens)
            # Of a stream that ends this looks ahead, so it comes before what was met and skipped is told.
            more = not stream.ended or more
            skips += [(lane, skip) for skip in stream.take_skips()]
        pixels = [number for number, part in enumerate(placed) if part.rendered.images]
        size = max(1, -(-len(pixels) // self._tasks))
        self._storage.expect(image.source for part in placed for image in part.rendered.images)
        chunks = [pixels[first : first + size] for first in range(0, len(pixels), size)]
        decoded = [self._pool.submit(self._decode, batch.images, placed, chunk) for chunk in chunks]
        states = {lane: stream.state() for lane, stream in zip(self._lanes, self._streams, strict=True)}
        tallies = [Tally(stream.tally.seen, stream.tally.skipped.copy()) for stream in self._streams]
        gone = [stream.gone() for stream in self._streams]
        return _Job(batch, placed, decoded, states, tallies, skips, gone, more)

    def _decode(self, images: np.ndarray, placed: list[Placed], chunk: list[int]) -> list[tuple[int, ImageError]]:
        """Decodes the images of some segments into their slots; returns those that cannot be."""
        bad: list[tuple[int, ImageError]] = []
        for number in chunk:
            part = placed[number]
            slot = part.first_slot
            try:
                for image in range(len(part.rendered.images)):
                    pixels = self._pixels(part.segment, image)
                    target = images[part.row, slot : slot + len(pixels)]
                    if pixels.shape != target.shape:
                        raise ValueError(
                            f"{part.rendered.key} decoded to {pixels.shape[1:]}; the slot is {target.shape[1:]}"
                        )
                    target[...] = pixels
                    slot += len(pixels)
            except ImageError as error:
                bad.append((number, error))
        return bad

    def _pixels(self, segment: Segment, image: int) -> np.ndarray:
        """The pixels of a record's image: u8[S, H, W, 3], as many as it takes slots."""
        rendered, preparation = segment.rendered, self._preparation
        data = self._storage.read_image(rendered.images[image].source)
        if preparation.tiled is not None:
            return preparation.tiled.decode(data, rendered.layouts[image])
        if preparation.augment is None:
            return preparation.decode(data)[None]
        place = self._names[segment.source], segment.shard, segment.place, image
        return preparation.augment(data, seed_of(self._config.seed, "augmentation", segment.epoch, *place))[None]

    def _finish(self, job: _Job) -> LoadedBatch:
        """Waits for the pixels, blanks segments whose image is bad, counts, and places the arrays."""
        bad = sorted((fault for future in job.decoded for fault in future.result()), key=lambda fault: fault[0])
        for number, error in bad:
            placed = job.placed[number]
            erase(job.batch, placed)
            cause = f"image_{error.cause}"
            order = placed.row // self._rows_per_lane
            self._undecodable[order].skipped[cause] += 1
            skip = Skip(cause, placed.rendered.key, error.detail)
            job.placed[number] = replace(placed, lost=skip)
            job.skips.append((self._lanes[order], skip))
        for _, skip in job.skips:
            self._log.note(skip)
        tally = add_tallies(
            tally
            for lane, *tallies in zip(self._lanes, job.tallies, self._undecodable, strict=True)
            if lane in self._counted
            for tally in tallies
        )
        if len(self._counted) == self._config.lanes:
            self.check_quota([tally])
        lanes = {
            lane: {"lane": job.states[lane], "undecodable": dict(sorted(tally.skipped.items()))}
            for lane, tally in zip(self._lanes, self._undecodable, strict=True)
        }
        kept = [placed for placed in job.placed if placed.lost is None]
        report = self._report(job, kept, tally)
        batch = job.batch
        if self._sharding is not None:
            from data_pipelines.placement import global_batch

            batch = global_batch(batch, self._sharding, self._rows, self._lanes, self._rows_per_lane)
        return LoadedBatch(batch, LanePositions(self._fingerprint, lanes), report, tuple(job.placed), not job.more)

    def _report(self, job: _Job, kept: list[Placed], tally: Tally) -> BatchReport:
        batch = job.batch
        filled = int(np.count_nonzero(batch.segment_ids))
        counts = np.repeat([lane in self._counted for lane in self._lanes], self._rows_per_lane)
        ours = [placed for placed in kept if counts[placed.row]]
        return BatchReport(
            records=len(ours),
            images=int(np.count_nonzero(batch.image_mask[counts])),
            skipped=dict(Counter(skip.cause for lane, skip in job.skips if lane in self._counted)),
            padding_share=1 - filled / batch.segment_ids.size,
            supervised_share=int(np.count_nonzero(batch.loss_weights)) / max(1, filled),
            image_slot_share=int(np.count_nonzero(batch.image_mask)) / max(1, batch.image_mask.size),
            keys=tuple(placed.rendered.key for placed in ours),
            tally=tally,
            failed_reads=self._storage.take_failures(),
            sources=source_reports(
                Counter(self._names[placed.source] for placed in ours),
                [gone for lane, gone in zip(self._lanes, job.gone, strict=True) if lane in self._counted],
                self._config.lanes,
                {} if job.more else self._planned(),
            ),
        )


def open_sources(config: StreamConfig, sources: Mapping[str, Any], storage: Storage) -> dict[str, Source]:
    """Opens the sources that a mixture draws from.

    Raises:
        ValueError: the mixture names a source that is not there.
    """
    unknown = sorted(config.mixture.sources.keys() - sources.keys())
    if unknown:
        raise ValueError(f"The mixture names the sources {unknown}, but the sources are {sorted(sources)}.")
    return {name: sources[name].open(storage) for name in config.names}


def _own_lanes(
    sharding: "NamedSharding | None", rows: int, lanes: int, chosen: Sequence[int] | None
) -> tuple[tuple[int, ...], Collection[int]]:
    """The lanes that this process builds, and those among them that it counts."""
    if sharding is None:
        own = tuple(range(lanes) if chosen is None else chosen)
        return own, own
    from data_pipelines.placement import counted_lanes, process_lanes

    return process_lanes(sharding, rows, lanes), counted_lanes(sharding, rows, lanes)
