"""CPU time a sample of reading and loading without decoding, beside webdataset, in one run; prints one JSON line.

    python benchmarks/loader_overhead.py [--samples 4000] [--image-bytes 50000] [--repeats 5] [--shards PATTERN]

Every figure is the median over repeats, in CPU milliseconds a sample of this process, threads included. Both read the
same img2dataset shards: `raw` hands over image and caption bytes; `loader` (ours alone) also packs, places and batches
records whose render and decode cost next to nothing.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import webdataset

from data_pipelines.lanes import StreamConfig
from data_pipelines.loader import Loader, Preparation
from data_pipelines.record import ImagePart, Record
from data_pipelines.rendered import RenderedRecord
from data_pipelines.shards import ImageText, write_shards
from data_pipelines.sources.shard_list import expand
from data_pipelines.sources.source import records
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage

IMAGE_TOKENS = 49
TOKENS = np.arange(IMAGE_TOKENS + 21, dtype=np.int32)
SUPERVISED = TOKENS > IMAGE_TOKENS
PIXELS = np.zeros((224, 224, 3), np.uint8)


def render(record: Record) -> RenderedRecord:
    images = tuple(part for part in record.turns[0].parts if isinstance(part, ImagePart))
    return RenderedRecord(record.key, TOKENS, SUPERVISED, SUPERVISED, (1,), images)


def read_ours(shards: str) -> int:
    storage = Storage()
    count = 0
    for record in records(WebDatasetConfig(shards=shards).open(storage)):
        if isinstance(record, Record) and isinstance(image := record.turns[0].parts[0], ImagePart):
            storage.read_range(image.source)
            count += 1
    return count


def read_webdataset(shards: str) -> int:
    return sum(1 for sample in webdataset.WebDataset(list(expand(shards)), shardshuffle=False) if "jpg" in sample)


def load_ours(loader: Loader, samples: int) -> int:
    count = 0
    while count < samples:
        count += next(loader).report.records
    return count


def cpu_milliseconds(action: Callable[[], int]) -> float:
    begin = time.process_time()
    count = action()
    return 1000 * (time.process_time() - begin) / count


def generated(samples: int, image_bytes: int) -> Iterator[ImageText]:
    random = np.random.default_rng(0)
    return (ImageText(random.bytes(image_bytes), f"a caption of some words, number {n}") for n in range(samples))


def measure(shards: str, samples: int, repeats: int) -> dict[str, float]:
    stream = StreamConfig(mixture={"pairs": 1.0}, lanes=2, row_length=560, images_per_row=8)
    sources = {"pairs": WebDatasetConfig(shards=shards)}
    raw, peer, whole = [], [], []
    with Loader(stream, sources, Preparation(render, lambda data: PIXELS, IMAGE_TOKENS, (224, 224)), 16) as loader:
        load_ours(loader, samples // 4)
        for _ in range(repeats):
            raw.append(cpu_milliseconds(lambda: read_ours(shards)))
            peer.append(cpu_milliseconds(lambda: read_webdataset(shards)))
            whole.append(cpu_milliseconds(lambda: load_ours(loader, samples)))
    raw_ours, raw_peer, loaded = (statistics.median(values) for values in (raw, peer, whole))
    return {
        "raw_ours": round(raw_ours, 4),
        "raw_webdataset": round(raw_peer, 4),
        "raw_ratio": round(raw_peer / raw_ours, 2),
        "loader_ours": round(loaded, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--image-bytes", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", help="existing shards instead of generated ones")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.shards is None:
            write_shards(generated(options.samples, options.image_bytes), folder)
        found = measure(options.shards or f"{folder}/*.tar", options.samples, options.repeats)
    print(json.dumps({"benchmark": "loader_overhead", "unit": "CPU ms a sample", "samples": options.samples} | found))


if __name__ == "__main__":
    main()
