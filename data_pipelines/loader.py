"""Lanes to batches: rows are built ahead of what is asked for, and become the arrays of one global batch."""

import os
import queue
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipelines.draws import planned_entries, portions_of
from data_pipelines.gathering import gather_json
from data_pipelines.loading.built_rows import Assignment, BuiltRows, LaneState, RowBuilder, state_tally
from data_pipelines.loading.loaded_batch import LoadedBatch, report_of
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.loading.threaded_rows import ThreadedRows, empty_rows
from data_pipelines.positions import LanePositions, fingerprint
from data_pipelines.preparation import Preparation
from data_pipelines.quota import SkipLog, Tally, add_tallies, check_quota
from data_pipelines.sources.opening import open_sources
from data_pipelines.sources.source import Source
from data_pipelines.storage import Storage
from data_pipelines.stream_config import StreamConfig
from data_pipelines.stream_end import StreamEnd

if TYPE_CHECKING:
    from jax.sharding import NamedSharding


@dataclass(frozen=True, slots=True)
class Share:
    """Which rows of the global batch a loader builds."""

    sharding: "NamedSharding | None" = None
    """Of token arrays over the mesh: the rows of this process's devices, as global arrays. None: NumPy arrays."""
    lanes: Sequence[int] | None = None
    """Where no sharding says it, whose rows are built, ascending, to look at some rows of a large batch without making
    it; None: all."""

    def own_lanes(self, rows: int, lanes: int) -> tuple[tuple[int, ...], Collection[int]]:
        """The lanes that this process builds, and those among them that it counts.

        Args:
            rows: B of the global batch.
            lanes: of the stream.
        """
        if self.sharding is None:
            own = tuple(range(lanes) if self.lanes is None else self.lanes)
            return own, own
        from data_pipelines.placement import counted_lanes, process_lanes

        return process_lanes(self.sharding, rows, lanes), counted_lanes(self.sharding, rows, lanes)


class CpuSeconds(NamedTuple):
    """CPU seconds since some beginning; None where no clock tells."""

    everything: float
    """Of this process, whatever it does, and of those of the loader."""
    packing: float | None
    """Of these, of the one thread of each loading process that reads, renders, packs and places, in Python."""
    gathering: float | None
    """Of the thread that brings together what the loader's processes built; None too where there are none."""


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
        *,
        share: Share | None = None,
        position: Mapping[str, Any] | None = None,
        work: LoaderConfig | None = None,
        storage: Storage | None = None,
    ) -> None:
        """Opens the sources and starts to prefetch.

        Args:
            config: of the stream.
            sources: name -> `SourceConfig`; the mixture's names must be among them.
            preparation: template, decoder and sizes.
            rows: B of the global batch; a multiple of `config.lanes`.
            share: which of them are built; None: all.
            position: JSON of `LanePositions` with all lanes; the stream goes on after that batch.
            work: what works on them; None: the default.
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
        share, work = share or Share(), work or LoaderConfig()
        self._config = config
        self._rows = rows
        self._sharding = share.sharding
        self._storage = storage or Storage()
        opened = open_sources(config, sources, self._storage)
        self._fingerprint = fingerprint(config, opened, preparation.image_tokens, preparation.tiling)
        lanes, self._counted = share.own_lanes(rows, config.lanes)
        self._assignment = Assignment(lanes, rows // config.lanes, self._saved_lanes(position, lanes))
        portions, alone = portions_of(config.mixture, opened), share.sharding is None
        self._planned = cache(lambda: planned_entries(portions, opened))
        self._end = StreamEnd((lambda told: [told]) if alone else gather_json) if config.mixture.ends else None
        self._log = SkipLog()
        self._closed = threading.Event()
        self._builder = self._start(sources, opened, preparation, work)
        self._ready: queue.Queue[LoadedBatch | BaseException] = queue.Queue(maxsize=1)
        self._producer = threading.Thread(target=self._produce, name="loader", daemon=True)
        self._producer.start()

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
        if self._end.reached(item.holds, not item.last):
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

    @property
    def process_ids(self) -> Sequence[int]:
        """Of the loader's own processes."""
        return self._builder.process_ids

    def cpu_seconds(self) -> CpuSeconds:
        """What was used so far."""
        everything = time.process_time() + self._builder.cpu_seconds
        if not hasattr(time, "pthread_getcpuclockid") or self._producer.ident is None:
            return CpuSeconds(everything, None, None)
        producing = time.clock_gettime(time.pthread_getcpuclockid(self._producer.ident))
        if not self.process_ids:
            return CpuSeconds(everything, producing, None)
        return CpuSeconds(everything, self._builder.packing_seconds, producing)

    def close(self) -> None:
        """Ends threads and processes, and waits for them."""
        self._closed.set()
        self._storage.close()  # Who waits for a store that does not answer is let go.
        while self._producer.is_alive():
            self._drain()
            self._producer.join(timeout=0.05)
        self._builder.close()
        self._storage.close()  # What was opened since.

    def _start(
        self,
        sources: Mapping[str, Any],
        opened: Mapping[str, Source],
        preparation: Preparation,
        work: LoaderConfig,
    ) -> RowBuilder:
        """What builds rows, in threads of this process or in others."""
        config, assignment = self._config, self._assignment
        if not work.processes:
            storage = self._storage
            return ThreadedRows(config, opened, preparation, assignment, storage, work.prefetch, work.threads)
        if preparation.description is None:
            raise ValueError(
                f"processes = {work.processes}, but other processes cannot make what this preparation makes: it has no "
                "description. Make it of one, or set processes to 0."
            )
        from data_pipelines.loading.process_rows import ProcessRows
        from data_pipelines.loading.work_order import WorkOrder

        order = WorkOrder(
            stream=config,
            sources={name: sources[name] for name in config.names},
            preparation=preparation.description,
            storage=self._storage.config,
            prefetch=work.prefetch,
            threads=work.threads,
            lanes=assignment.lanes,
            rows_per_lane=assignment.rows_per_lane,
            saved=dict(assignment.saved),
            first_row=0,
            rows=assignment.rows,
            batches=work.prefetch + 1,
            parent=os.getpid(),
        )
        one_row = empty_rows(config, preparation, 1)
        return ProcessRows(order, work.processes, one_row, self._fingerprint, self._closed.is_set)

    def _saved_lanes(self, position: Mapping[str, Any] | None, lanes: tuple[int, ...]) -> dict[int, LaneState]:
        """The states of a position's lanes, after its check against this stream; none without a position."""
        if position is None:
            return {}
        restored = LanePositions.from_json(position)
        restored.check(self._fingerprint, lanes)
        return restored.lanes

    def _produce(self) -> None:
        """Hands out batches in order, and then the error that ends them."""
        try:
            while not self._closed.is_set():
                self._hand_out(self._loaded(next(self._builder)))
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

    def _loaded(self, built: BuiltRows) -> LoadedBatch:
        """Counts what was left out, describes the rows, and places the arrays."""
        for _, skip in built.skips:
            self._log.note(skip)
        tally = add_tallies(state_tally(state) for lane, state in built.states.items() if lane in self._counted)
        if len(self._counted) == self._config.lanes:
            self.check_quota([tally])
        built.failed_reads += self._storage.take_failures()
        planned = {} if built.more else self._planned()
        report = report_of(built, self._assignment, self._counted, tally, self._config, planned)
        batch = built.batch
        if self._sharding is not None:
            from data_pipelines.placement import global_batch

            lanes, rows_per_lane = self._assignment.lanes, self._assignment.rows_per_lane
            batch = global_batch(batch, self._sharding, self._rows, lanes, rows_per_lane)
        position = LanePositions(self._fingerprint, built.states)
        return LoadedBatch(batch, position, report, built.records, built.holds, not built.more)
