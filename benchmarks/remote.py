"""Reading shards from a web server that is far away, beside webdataset with curl; prints one JSON line.

    python benchmarks/remote.py [--samples 4000] [--kilobytes 45] [--latency-ms 20] [--megabytes-per-s 50] [--repeats 3]

A server in a process of its own answers every request after the latency and sends no faster than that on one
connection, as object stores do. All read the same shards, every sample's image and caption, in a process of their own,
in turn in every repeat; figures are medians:

    samples_per_s   from opening the shards to the last sample
    megabytes_per_s likewise
    cpu_ms          CPU milliseconds a sample, of the process and what it started

Readers: `ours` hands over the bytes of sample after sample, `ours_stream` is the whole loader (lanes, shuffling,
packing; images are read when their row is full): with blocks in memory alone, in a cache on disk that is empty at first
(`_cache`), and once more with the cache that the first time left (`_again`). `webdataset` reads `pipe:curl`, in one
process or in four of torch's DataLoader (`_4`).
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import re
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SHARDS = 8
PIECE = 2**17
IMAGE_TOKENS = 4


class Reading(NamedTuple):
    """What a reader is given."""

    shards: list[str]
    samples: int
    """In all shards."""
    cache: str | None
    """Folder of blocks; None: none are kept on disk."""


class Slow(NamedTuple):
    """How far away a server is."""

    latency: float
    """Seconds before every answer."""
    bytes_per_second: float
    """Of one connection."""


class SlowServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: str, slow: Slow) -> None:
        super().__init__(("localhost", 0), _Handler)
        self.folder = Path(folder)
        self.slow = slow

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are no news."""


class _Handler(BaseHTTPRequestHandler):
    server: SlowServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        time.sleep(self.server.slow.latency)
        path = self.server.folder / self.path.removeprefix("/")
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked else (0, size)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", '"1"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        begun = time.perf_counter()
        with open(path, "rb") as file:
            for at in range(start, end, PIECE):
                due = begun + (at - start) / self.server.slow.bytes_per_second
                time.sleep(max(0.0, due - time.perf_counter()))
                self.connection.sendfile(file, at, min(PIECE, end - at))


def serve(folder: str, slow: Slow, port: Connection) -> None:
    with SlowServer(folder, slow) as server:
        port.send(server.server_port)
        server.serve_forever()


def written_shards(folder: str, samples: int, kilobytes: int) -> list[str]:
    from data_pipelines.shards import ImageText, write_shards

    random = np.random.default_rng(0)
    images = [random.bytes(kilobytes * 1000) for _ in range(16)]
    pairs = (ImageText(images[n % 16], f"a caption of some words, number {n}") for n in range(samples))
    return [path.name for path in write_shards(pairs, folder, -(-samples // SHARDS))]


def ours(reading: Reading) -> Iterator[int]:
    from data_pipelines.record import ImagePart, Record
    from data_pipelines.sources.source import records
    from data_pipelines.sources.webdataset import WebDatasetConfig
    from data_pipelines.storage import Storage, StorageConfig

    storage = Storage(StorageConfig(cache=reading.cache))
    for record in records(WebDatasetConfig(shards=tuple(reading.shards)).open(storage)):
        if isinstance(record, Record) and isinstance(image := record.turns[0].parts[0], ImagePart):
            yield len(storage.read_image(image.source))
    storage.close()


def ours_stream(reading: Reading) -> Iterator[int]:
    from data_pipelines.loader import Loader
    from data_pipelines.preparation import Preparation
    from data_pipelines.record import ImagePart, Record
    from data_pipelines.rendered import RenderedRecord
    from data_pipelines.sources.webdataset import WebDatasetConfig
    from data_pipelines.storage import Storage, StorageConfig
    from data_pipelines.stream_config import StreamConfig

    tokens = np.arange(IMAGE_TOKENS + 21, dtype=np.int32)
    supervised, pixels = tokens > IMAGE_TOKENS, np.zeros((8, 8, 3), np.uint8)
    lengths = [0]

    def render(record: Record) -> RenderedRecord:
        images = tuple(part for part in record.turns[0].parts if isinstance(part, ImagePart))
        return RenderedRecord(record.key, tokens, supervised, supervised, (1,), images)

    def decode(data: bytes) -> np.ndarray:
        lengths[0] = len(data)
        return pixels

    stream = StreamConfig(mixture={"pairs": 1.0}, lanes=2, row_length=8 * len(tokens), images_per_row=8)
    sources = {"pairs": WebDatasetConfig(shards=tuple(reading.shards))}
    preparation = Preparation(render, decode, IMAGE_TOKENS, (8, 8))
    storage = Storage(StorageConfig(cache=reading.cache))
    given = 0
    with Loader(stream, sources, preparation, 8, storage=storage) as loader:
        while given < reading.samples:
            records = next(loader).report.records
            given += records
            yield from lengths * records


def length_of(sample: dict[str, bytes]) -> int:
    return len(sample["jpg"]) * bool(sample["txt"])


def webdataset(reading: Reading, workers: int = 0) -> Iterator[int]:
    import torch
    import webdataset as wds

    commands = [f"pipe:curl --silent --fail {shard}" for shard in reading.shards]
    samples = wds.WebDataset(commands, shardshuffle=False, empty_check=False)
    lengths = samples.map(length_of)
    yield from torch.utils.data.DataLoader(lengths, batch_size=None, num_workers=workers) if workers else lengths


class Case(NamedTuple):
    reader: Callable[[Reading], Iterator[int]]
    cache: bool = False
    again: bool = False
    """Whether all was read into the cache before."""


CASES = {
    "ours": Case(ours),
    "ours_cache": Case(ours, cache=True),
    "ours_again": Case(ours, cache=True, again=True),
    "ours_stream": Case(ours_stream),
    "ours_stream_cache": Case(ours_stream, cache=True),
    "ours_stream_again": Case(ours_stream, cache=True, again=True),
    "webdataset": Case(webdataset),
    "webdataset_4": Case(partial(webdataset, workers=4)),
}


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(name: str, reading: Reading, answer: Connection) -> None:
    """Sends samples/s, megabytes/s and CPU milliseconds a sample; imports are not measured."""
    for module in ("aiohttp", "data_pipelines.loader") if name.startswith("ours") else ("torch", "webdataset"):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as cache:
        case = CASES[name]
        reading = reading._replace(cache=cache if case.cache else None)
        if case.again:
            for _ in ours(reading):
                pass
        begun, used, count, size = time.perf_counter(), cpu_seconds(), 0, 0
        for length in case.reader(reading):
            count, size = count + 1, size + length
        seconds, used = time.perf_counter() - begun, cpu_seconds() - used
    if count < reading.samples:
        raise RuntimeError(f"{name} gave {count} of {reading.samples} samples")
    answer.send((count / seconds, size / 1e6 / seconds, 1000 * used / count))
    answer.close()


def in_a_process(target: Callable[..., None], *arguments: Any) -> tuple[multiprocessing.process.BaseProcess, Any]:
    """Starts a process, and returns it with the first thing that it sends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        return process, ours.recv()
    except EOFError:
        raise RuntimeError(f"{target.__name__} {arguments[0]} failed; its traceback is above.") from None


FIELDS = ("samples_per_s", "megabytes_per_s", "cpu_ms")


def ratios(median: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times as fast ours is as webdataset in one process, and in four."""
    return {
        f"{ours}_to_{theirs}": round(median[ours]["samples_per_s"] / median[theirs]["samples_per_s"], 2)
        for theirs in median
        if theirs.startswith("webdataset")
        for ours in median
        if ours.startswith("ours")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--kilobytes", type=int, default=45, help="of an image")
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--megabytes-per-s", type=float, default=50, help="of one connection")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    there = all(importlib.util.find_spec(package) for package in ("webdataset", "torch")) and shutil.which("curl")
    names = [name for name in options.only if there or name.startswith("ours")]
    runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        shards = written_shards(folder, options.samples, options.kilobytes)
        server, port = in_a_process(serve, folder, Slow(options.latency_ms / 1000, options.megabytes_per_s * 1e6))
        reading = Reading([f"http://localhost:{port}/{shard}" for shard in shards], options.samples, None)
        try:
            for name in names * options.repeats:
                process, found = in_a_process(measure, name, reading)
                runs[name].append(found)
                process.join()
        finally:
            server.terminate()
            server.join()
    median = {
        name: {field: round(statistics.median(row[at] for row in rows), 3) for at, field in enumerate(FIELDS)}
        for name, rows in runs.items()
    }
    told = {name: getattr(options, name) for name in ("samples", "kilobytes", "latency_ms", "megabytes_per_s")}
    told["not_installed"] = [name for name in options.only if name not in names]
    print(json.dumps({"benchmark": "remote"} | told | {"readers": median, "ratios": ratios(median)}))


if __name__ == "__main__":
    main()
