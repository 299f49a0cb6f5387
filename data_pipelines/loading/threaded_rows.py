"""Rows built in this process: packed in the thread that asks for them, their images decoded in several others."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.assemble import Placed, empty_batch, erase, place_row
from data_pipelines.batch import Batch
from data_pipelines.draws import portions_of
from data_pipelines.lanes import Gone, Lane
from data_pipelines.loading.built_rows import Assignment, BuiltRows
from data_pipelines.packing import Segment
from data_pipelines.permutation import seed_of
from data_pipelines.preparation import Preparation
from data_pipelines.quota import Skip
from data_pipelines.sources.source import Source
from data_pipelines.storage import Storage
from data_pipelines.stream_config import StreamConfig
from data_pipelines.transforms.image_error import ImageError

_TASKS_PER_THREAD = 4


def empty_rows(config: StreamConfig, preparation: Preparation, rows: int) -> Batch:
    """Rows of padding, as the batches of a stream have them."""
    sizes = preparation.image_size, preparation.instruction_tokens
    compared = preparation.preferences, preparation.references
    return empty_batch(rows, config.row_length, config.images_per_row, *sizes, *compared)


@dataclass(slots=True)
class _Job:
    """Rows whose images are being decoded."""

    batch: Batch
    placed: list[Placed]
    decoded: list[Future[list[tuple[int, ImageError]]]]
    states: dict[int, dict[str, Any]]
    skips: list[tuple[int, Skip]]
    """With their lanes."""
    gone: dict[int, dict[str, Gone]]
    more: bool


class ThreadedRows:
    """Builds the rows of some lanes, `prefetch` batches at a time.

    One thread packs: the one that calls `next`, which must be always the same.
    """

    process_ids = ()
    cpu_seconds = packing_seconds = 0.0
    """No process beside this one has a part in it."""

    def __init__(
        self,
        config: StreamConfig,
        sources: Mapping[str, Source],
        preparation: Preparation,
        assignment: Assignment,
        storage: Storage,
        prefetch: int,
        threads: int,
        new_rows: Callable[[], Batch] | None = None,
    ) -> None:
        """
        Args:
            config: of the stream.
            sources: opened, by name.
            preparation: template, decoder and sizes.
            assignment: which rows.
            storage: what reads images.
            prefetch: batches that are being decoded while one is waited for, that one among them.
            threads: that decode.
            new_rows: gives the arrays of the next batch's rows, padding but for the pixels, which may be those of a
                batch before; None: new ones.

        Raises:
            ValueError: a record that waited when the position was saved is not what it was.
        """
        self._config = config
        self._preparation = preparation
        self._assignment = assignment
        self._storage = storage
        self._prefetch = prefetch
        self._names = config.names
        saved, portions = assignment.saved, portions_of(config.mixture, sources)
        stage = preparation.render, preparation.image_tokens
        self._lanes = {
            lane: Lane(lane, config, sources, *stage, saved.get(lane, {}).get("lane"), portions)
            for lane in assignment.lanes
        }
        self._undecodable: dict[int, Counter[str]] = {
            lane: Counter(saved.get(lane, {}).get("undecodable", {})) for lane in assignment.lanes
        }
        self._reused = new_rows is not None
        self._new_rows = new_rows or (lambda: empty_rows(config, preparation, assignment.rows))
        self._tasks = threads * _TASKS_PER_THREAD
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._jobs: deque[_Job] = deque()
        self._failure: Exception | None = None

    def __next__(self) -> BuiltRows:
        while len(self._jobs) < self._prefetch and self._failure is None:
            try:
                self._jobs.append(self._begin())
            except Exception as error:
                self._failure = error
        if self._failure is not None and not self._jobs:
            raise self._failure
        return self._finish(self._jobs.popleft())

    def close(self) -> None:
        """Waits for the threads; images that none has begun are left."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> _Job:
        """Packs the next row of every lane as often as needed and starts to decode their images."""
        per_lane, image_tokens = self._assignment.rows_per_lane, self._preparation.image_tokens
        batch = self._new_rows()
        placed: list[Placed] = []
        skips: list[tuple[int, Skip]] = []
        more = False
        for order, (number, lane) in enumerate(self._lanes.items()):
            for index in range(order * per_lane, (order + 1) * per_lane):
                placed += place_row(batch, index, lane.next_row(), image_tokens)
            # Of a stream that ends this looks ahead, so it comes before what was met and skipped is told.
            more = not lane.ended or more
            skips += [(number, skip) for skip in lane.take_skips()]
        if self._reused:
            # Of the other slots every pixel is written: those of an image, or zeros where it is bad.
            batch.images[~batch.image_mask] = 0
        pixels = [number for number, part in enumerate(placed) if part.rendered.images]
        size = max(1, -(-len(pixels) // self._tasks))
        self._storage.expect(image.source for part in placed for image in part.rendered.images)
        chunks = [pixels[first : first + size] for first in range(0, len(pixels), size)]
        decoded = [self._pool.submit(self._decode, batch.images, placed, chunk) for chunk in chunks]
        states = {number: lane.state() for number, lane in self._lanes.items()}
        gone = {number: lane.gone() for number, lane in self._lanes.items()}
        return _Job(batch, placed, decoded, states, skips, gone, more)

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

    def _finish(self, job: _Job) -> BuiltRows:
        """Waits for the pixels, and blanks and counts segments whose image is bad."""
        bad = sorted((fault for future in job.decoded for fault in future.result()), key=lambda fault: fault[0])
        for number, error in bad:
            placed = job.placed[number]
            erase(job.batch, placed)
            skip = Skip(f"image_{error.cause}", placed.rendered.key, error.detail)
            lane = self._assignment.lanes[placed.row // self._assignment.rows_per_lane]
            self._undecodable[lane][skip.cause] += 1
            job.placed[number] = replace(placed, lost=skip)
            job.skips.append((lane, skip))
        return BuiltRows(
            batch=job.batch,
            keys=[(part.row, part.rendered.key, part.source) for part in job.placed if part.lost is None],
            skips=sorted(job.skips, key=lambda skip: skip[0]),
            states={
                lane: {"lane": state, "undecodable": dict(sorted(self._undecodable[lane].items()))}
                for lane, state in job.states.items()
            },
            gone=job.gone,
            holds=bool(job.placed),
            more=job.more,
            failed_reads=self._storage.take_failures(),
            records=tuple(job.placed),
        )
