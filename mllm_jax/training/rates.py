"""Speed of the steps since the last report."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax

from data_pipelines.gathering import gather_json
from data_pipelines.loading.loaded_batch import BatchReport
from data_pipelines.source_report import SourceReport
from mllm_jax.training.flops import StepCost
from mllm_jax.training.step import Metrics

Item = TypeVar("Item")

_COUNTS = ("tokens", "supervised_tokens", "images", "token_places", "attended")


class RateMeter:
    """Counts tokens, images and time between reports.

    All counts are those of the global batch. Records and skipped records are known to the process that read them only,
    and are added up over processes when a report is made: every process must ask for the same reports.

    It waits for each step's metrics only when the next step is already running, so the device never waits for the
    host and the host never runs more than one step ahead.
    """

    def __init__(self, cost: StepCost | None, peak: float | None, clock: Callable[[], float] = time.monotonic):
        """
        Args:
            cost: FLOPs of a step; None where not known.
            peak: FLOP/s of all devices together, None where not known.
            clock: seconds; another one for tests.
        """
        self._cost, self._peak, self._clock = cost, peak, clock
        self._pending: Metrics | None = None
        self._sources: Mapping[str, SourceReport] = {}
        self._restart()

    def _restart(self) -> None:
        self._since = self._clock()
        self._steps = 0
        self._waited = 0.0
        self._excluded = 0.0
        self._records = 0
        self._failed_reads = 0
        self._skipped = Counter[str]()
        self._drawn = Counter[str]()
        self._totals = dict.fromkeys(_COUNTS, 0.0)

    def waiting_for(self, take: Callable[[], Item]) -> Item:
        """`take()`, its time counted as waiting for data."""
        began = self._clock()
        item = take()
        self._waited += self._clock() - began
        return item

    def apart(self, work: Callable[[], Item]) -> Item:
        """`work()`, its time (a validation, a checkpoint) not counted as time of steps."""
        self._collect()
        began = self._clock()
        result = work()
        self._excluded += self._clock() - began
        return result

    def count(self, metrics: Metrics, report: BatchReport) -> None:
        """Counts a step that was started and what its batch says of itself; returns when the step before has ended."""
        self._collect()
        self._records += report.records
        self._failed_reads += report.failed_reads
        self._skipped.update(report.skipped)
        self._drawn.update({name: source.records for name, source in report.sources.items()})
        self._sources = report.sources
        self._pending = metrics

    def _collect(self) -> None:
        if self._pending is None:
            return
        counts = jax.device_get({name: self._pending[name] for name in _COUNTS})
        self._pending = None
        self._steps += 1
        for name, value in counts.items():
            self._totals[name] += float(value)

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of the step that was counted last, and the rates since the last report; waits for that step."""
        self._collect()
        values: dict[str, float] = {
            name: float(value) for name, value in jax.device_get(metrics).items() if name not in _COUNTS
        }
        read = self._read_by_all()
        totals, seconds = self._totals, max(self._clock() - self._since - self._excluded, 1e-9)
        places = max(totals["token_places"], 1.0)
        values |= {
            "supervised_share": totals["supervised_tokens"] / places,
            "padding_share": 1.0 - totals["tokens"] / places,
            "images_per_second": totals["images"] / seconds,
            "tokens_per_second": totals["tokens"] / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
            "records": read.records,
            "skipped_records": read.skipped.total(),
            "failed_reads": read.failed_reads,
            "data_wait_seconds": self._waited,
            "data_wait_share": min(self._waited / seconds, 1.0),
        }
        values |= {f"skipped_{cause}": count for cause, count in sorted(read.skipped.items())}
        values |= _of_sources(read)
        if self._cost is not None:
            flops = self._cost.flops(totals["tokens"], totals["images"], totals["attended"]) / seconds
            values |= {"model_flops_per_second": flops} | ({"mfu": flops / self._peak} if self._peak else {})
        self._restart()
        return values

    def drawn(self) -> dict[str, SourceReport]:
        """What the reports so far have of each source, over all processes: the records are those since the last one."""
        return self._read_by_all().sources

    def _read_by_all(self) -> "_Read":
        """What all processes read since the last report."""
        sources = {
            name: [self._drawn[name], source.met, source.epochs, source.planned]
            for name, source in self._sources.items()
        }
        own = {"counts": [self._records, self._failed_reads], "skipped": self._skipped, "sources": sources}
        gathered = gather_json(own)
        skipped = Counter[str]()
        for one in gathered:
            skipped.update(one["skipped"])
        records, failed_reads = (sum(counts) for counts in zip(*(one["counts"] for one in gathered), strict=True))
        return _Read(records, failed_reads, skipped, _added([one["sources"] for one in gathered]))


@dataclass(frozen=True, slots=True)
class _Read:
    """What all processes read since the last report."""

    records: int
    failed_reads: int
    skipped: Counter[str]
    """By cause."""
    sources: dict[str, SourceReport]


def _added(processes: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, SourceReport]:
    """The sums of what processes have of each source; what is planned all of them say alike."""
    added = {}
    for name in dict.fromkeys(name for process in processes for name in process):
        records, met, epochs, planned = zip(*(process[name] for process in processes if name in process), strict=True)
        added[name] = SourceReport(sum(records), sum(met), sum(epochs), planned[0])
    return added


def _of_sources(read: _Read) -> dict[str, float]:
    """The epochs that each source has been gone through, and of several the shares of the records."""
    values = {f"epochs_{name}": source.epochs for name, source in read.sources.items()}
    if len(read.sources) > 1:
        values |= {f"share_{name}": source.records / max(read.records, 1) for name, source in read.sources.items()}
    return values
