"""How many samples a second a loader gives on this machine, and what they cost it."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.batch import Batch
from data_pipelines.loader import CpuSeconds, Loader

WINDOWS = 5
"""Of which the median counts."""

WARM_SHARE = 0.25
"""Seconds of warm-up for each that is measured; there is a batch at least."""


@dataclass(frozen=True, slots=True)
class LoaderSpeed:
    """Medians over windows. A sample is a record; an image is what fills a slot, of a tiled image every tile."""

    samples_per_second: float
    images_per_second: float
    rows_per_second: float
    tokens_per_second: float
    """Padding not among them."""
    samples_per_row: float
    images_per_row: float
    tokens_per_row: float
    processes: int
    """That the loader has of its own; 0: threads of this one do its work."""
    cpu_ms_per_sample: float
    """Of all threads of this process and of those."""
    packing_ms_per_sample: float | None
    """Of the one thread that packs rows, in Python, so that no process is faster; of the loader's own processes, which
    share the samples, their mean. None where no clock tells."""
    gathering_ms_per_sample: float | None
    """Of the thread that brings together what the loader's own processes built, so that all of them are no faster;
    None too where there are none."""
    memory_mb: float | None
    """Of this process and those, beyond what it had before the loader was opened, a share of what they have in common
    each; None where the system does not tell."""


@dataclass(frozen=True, slots=True)
class _Window:
    wall: float
    used: CpuSeconds
    samples: int
    images: int
    rows: int
    tokens: float


def loader_speed(
    open_loader: Callable[[], Loader], seconds: float, warm: Callable[[Batch], Any] = lambda batch: None
) -> LoaderSpeed:
    """Opens a loader, lets it warm up, and measures it while nothing but the loader works in this process.

    Args:
        open_loader: a loader of NumPy batches.
        seconds: that are measured; a window lasts at least a batch.
        warm: is given every batch of the warm-up.
    """
    before = memory_mb()
    with open_loader() as loader:
        ends = time.monotonic() + WARM_SHARE * seconds
        warm(next(loader).batch)
        while time.monotonic() < ends:
            warm(next(loader).batch)
        windows = [_window(loader, seconds / WINDOWS) for _ in range(WINDOWS)]
        after, processes = memory_mb(loader.process_ids), len(loader.process_ids)

    rows = sum(window.rows for window in windows)

    def median(value: Callable[[_Window], float]) -> float:
        return statistics.median(map(value, windows))

    def milliseconds(thread: str) -> float | None:
        if any(getattr(window.used, thread) is None for window in windows):
            return None
        return median(lambda window: 1000 * getattr(window.used, thread) / max(window.samples, 1))

    return LoaderSpeed(
        samples_per_second=median(lambda window: window.samples / window.wall),
        images_per_second=median(lambda window: window.images / window.wall),
        rows_per_second=median(lambda window: window.rows / window.wall),
        tokens_per_second=median(lambda window: window.tokens / window.wall),
        samples_per_row=sum(window.samples for window in windows) / rows,
        images_per_row=sum(window.images for window in windows) / rows,
        tokens_per_row=sum(window.tokens for window in windows) / rows,
        processes=processes,
        cpu_ms_per_sample=milliseconds("everything") or 0.0,
        packing_ms_per_sample=milliseconds("packing"),
        gathering_ms_per_sample=milliseconds("gathering"),
        memory_mb=None if before is None or after is None else after - before,
    )


def _window(loader: Loader, seconds: float) -> _Window:
    wall, began = time.monotonic(), loader.cpu_seconds()
    samples = images = rows = 0
    tokens = 0.0
    while True:
        loaded = next(loader)
        samples += loaded.report.records
        images += loaded.report.images
        rows += len(loaded.batch.tokens)
        tokens += (1 - loaded.report.padding_share) * loaded.batch.tokens.size
        if time.monotonic() - wall >= seconds:
            return _Window(time.monotonic() - wall, _since(began, loader.cpu_seconds()), samples, images, rows, tokens)


def _since(began: CpuSeconds, now: CpuSeconds) -> CpuSeconds:
    def used(before: float | None, after: float | None) -> float | None:
        return None if before is None or after is None else after - before

    everything = now.everything - began.everything
    return CpuSeconds(everything, used(began.packing, now.packing), used(began.gathering, now.gathering))


def memory_mb(others: Sequence[int] = ()) -> float | None:
    """Proportional set size in MB of this process and others; None on systems without /proc."""
    try:
        texts = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in ("self", *others)]
    except OSError:
        return None
    lines = (line for text in texts for line in text.splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
