"""How many samples a second a loader gives on this machine, and what they cost it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batch import Batch
from data_pipelines.loader import Loader, Preparation
from data_pipelines.record import ImagePart
from data_pipelines.rendered import ImageLayout
from data_pipelines.transforms.tiles import TiledImages

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
    cpu_ms_per_sample: float
    """Of all threads of the process."""
    packing_ms_per_sample: float | None
    """Of the one thread that packs rows, in Python, so that no process is faster; None where no clock tells."""
    memory_mb: float | None
    """Resident memory beyond what the process had before the loader was opened; None where the system does not tell."""


@dataclass(frozen=True, slots=True)
class _Window:
    wall: float
    cpu: float
    packing: float | None
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
    before = resident_mb()
    with open_loader() as loader:
        ends = time.monotonic() + WARM_SHARE * seconds
        warm(next(loader).batch)
        while time.monotonic() < ends:
            warm(next(loader).batch)
        windows = [_window(loader, seconds / WINDOWS) for _ in range(WINDOWS)]
        after = resident_mb()

    rows = sum(window.rows for window in windows)

    def median(value: Callable[[_Window], float]) -> float:
        return statistics.median(map(value, windows))

    return LoaderSpeed(
        samples_per_second=median(lambda window: window.samples / window.wall),
        images_per_second=median(lambda window: window.images / window.wall),
        rows_per_second=median(lambda window: window.rows / window.wall),
        tokens_per_second=median(lambda window: window.tokens / window.wall),
        samples_per_row=sum(window.samples for window in windows) / rows,
        images_per_row=sum(window.images for window in windows) / rows,
        tokens_per_row=sum(window.tokens for window in windows) / rows,
        cpu_ms_per_sample=median(lambda window: 1000 * window.cpu / max(window.samples, 1)),
        packing_ms_per_sample=None
        if any(window.packing is None for window in windows)
        else median(lambda window: 1000 * (window.packing or 0) / max(window.samples, 1)),
        memory_mb=None if before is None or after is None else after - before,
    )


def _window(loader: Loader, seconds: float) -> _Window:
    wall, cpu, packing = time.monotonic(), time.process_time(), loader.packing_seconds()
    samples = images = rows = 0
    tokens = 0.0
    while True:
        loaded = next(loader)
        samples += loaded.report.records
        images += loaded.report.images
        rows += len(loaded.batch.tokens)
        tokens += (1 - loaded.report.padding_share) * loaded.batch.tokens.size
        if time.monotonic() - wall >= seconds:
            packed = loader.packing_seconds()
            packing = None if packed is None or packing is None else packed - packing
            return _Window(time.monotonic() - wall, time.process_time() - cpu, packing, samples, images, rows, tokens)


def without_decoding(preparation: Preparation) -> Preparation:
    """The same, but every image is black and costs no decoding: what is left is reading, Python's work and copying."""
    black = np.zeros((*preparation.image_size, 3), np.uint8)
    tiled = None if preparation.tiled is None else _BlackTiles(preparation.tiled, black)
    return replace(preparation, decode=lambda data: black, tiled=tiled)


class _BlackTiles(TiledImages):
    """Tiled images of which none is decoded."""

    def __init__(self, tiled: TiledImages, black: np.ndarray) -> None:
        self.config = tiled.config
        self._tiled = tiled
        self._black = black

    def fingerprint(self) -> dict[str, Any]:
        return self._tiled.fingerprint()

    def layout(self, image: ImagePart) -> ImageLayout:
        return self._tiled.layout(image)

    def decode(self, data: bytes, layout: ImageLayout) -> np.ndarray:
        return np.broadcast_to(self._black, (layout.slots, *self._black.shape))


def resident_mb() -> float | None:
    """Resident memory of this process in MB; None on systems without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS:")), None)
