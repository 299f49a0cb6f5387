"""How soon the first batch comes when a run goes on deep inside one large shard; prints one JSON line.

    python benchmarks/resume.py [--samples 50000] [--lanes 8] [--depths 0.1 0.5 0.9]

The shard holds small images, so nearly all of the time is the stream's: opening the shard, finding where every lane
stood, and reading the records that waited for a row. Each depth is a share of the shard's records, at which the stream
is stopped and gone on with from its position, with the shard's index and without; times are medians of
three:

    first_batch_s  from opening the sources to the first batch
    index_s        what `mllm data index` takes for the shard
    megabytes      of the shard, and of its index
    cpu_ms         CPU milliseconds a record of the stream without decoding, from the first batch on
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.indexing import index_shards
from data_pipelines.loader import Loader
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.preparation import Preparation
from data_pipelines.record import ImagePart, Record
from data_pipelines.rendered import RenderedRecord
from data_pipelines.shards import ImageText, write_shards
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.stream_config import StreamConfig

IMAGE_TOKENS = 4
TOKENS = np.arange(IMAGE_TOKENS + 21, dtype=np.int32)
SUPERVISED = TOKENS > IMAGE_TOKENS
PIXELS = np.zeros((8, 8, 3), np.uint8)
ROWS_PER_LANE = 4


def render(record: Record) -> RenderedRecord:
    images = tuple(part for part in record.turns[0].parts if isinstance(part, ImagePart))
    return RenderedRecord(record.key, TOKENS, SUPERVISED, SUPERVISED, (1,), images)


PREPARATION = Preparation(render, lambda data: PIXELS, IMAGE_TOKENS, (8, 8))


def written_shard(folder: str, samples: int) -> str:
    images = [bytes([number]) * (300 + number) for number in range(64)]
    pairs = (ImageText(images[n % 64], f"a caption of some words, number {n}") for n in range(samples))
    (shard,) = write_shards(pairs, folder, samples)
    return str(shard)


def opened(config: WebDatasetConfig, lanes: int, position: dict[str, Any] | None) -> Loader:
    stream = StreamConfig(mixture={"pairs": 1.0}, lanes=lanes, row_length=8 * len(TOKENS), images_per_row=8)
    work = LoaderConfig(prefetch=1)
    return Loader(stream, {"pairs": config}, PREPARATION, lanes * ROWS_PER_LANE, position=position, work=work)


def positions(config: WebDatasetConfig, lanes: int, records: list[int]) -> Iterator[dict[str, Any]]:
    """Where the stream stands once it has given so many records."""
    given = 0
    with opened(config, lanes, None) as loader:
        for wanted in records:
            while given < wanted:
                loaded = next(loader)
                given += loaded.report.records
            yield json.loads(json.dumps(loaded.position.to_json()))


def first_batch(config: WebDatasetConfig, lanes: int, position: dict[str, Any]) -> float:
    begun = time.perf_counter()
    with opened(config, lanes, position) as loader:
        next(loader)
        return time.perf_counter() - begun


def cpu_ms(config: WebDatasetConfig, lanes: int, records: int) -> float:
    with opened(config, lanes, None) as loader:
        next(loader)
        begun, given = time.process_time(), 0
        while given < records:
            given += next(loader).report.records
        return 1000 * (time.process_time() - begun) / given


def measured(shard: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures by whether there is an index."""
    sources = {"index": WebDatasetConfig(shards=shard, index="require")}
    sources["no_index"] = WebDatasetConfig(shards=shard, index="never")
    stops = [int(depth * options.samples) for depth in sorted(options.depths)]
    stood = dict(zip(stops, positions(sources["index"], options.lanes, stops), strict=True))
    return {
        name: {
            "first_batch_s": {
                stop: round(statistics.median(first_batch(source, options.lanes, stood[stop]) for _ in range(3)), 3)
                for stop in stops
            },
            "cpu_ms": round(cpu_ms(source, options.lanes, options.samples // 20), 4),
        }
        for name, source in sources.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--depths", type=float, nargs="+", default=[0.1, 0.5, 0.9])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shard = written_shard(folder, options.samples)
        begun = time.perf_counter()
        list(index_shards([shard]))
        index_s = time.perf_counter() - begun
        figures = measured(shard, options)
        sizes = {"shard": Path(shard).stat().st_size, "index": Path(f"{shard}.index").stat().st_size}
    found = {"benchmark": "resume", "samples": options.samples, "lanes": options.lanes, "index_s": round(index_s, 2)}
    found["megabytes"] = {name: round(size / 1e6, 2) for name, size in sizes.items()}
    print(json.dumps(found | figures | {"promise": "with an index at most 2 s at any depth"}))


if __name__ == "__main__":
    main()
