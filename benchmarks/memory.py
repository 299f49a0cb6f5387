"""Whether memory stays flat while a stream goes on for as long as an hour of training reads; prints one JSON line.

    python benchmarks/memory.py [--records 500000] [--samples 64000] [--cases tars indexed json]

The whole loader runs (lanes, shuffling, packing, decoding 32 x 32 JPEGs in two threads) over the same records, several
epochs of them: `tars` without an index, `indexed` with one, `json` as conversations whose images are in tars. Each case
has a process of its own; its proportional set size is looked at 200 times. The first fifth warms up; of the rest

    grown_mb   growth of the straight line that fits best, from its first look to its last
    spread_mb  highest look less lowest
"""

import argparse
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

SHARDS = 64
SIDE = 32
IMAGE_TOKENS = 4
LOOKS = 200
WARM = LOOKS // 5
GROWN_MB = 5.0
"""What the line may grow in all."""


def jpegs(count: int) -> list[bytes]:
    from PIL import Image

    random = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(buffer, "JPEG", quality=60)
        encoded.append(buffer.getvalue())
    return encoded


def write_data(folder: Path, samples: int) -> None:
    """Writes pairs in `tars`, the same with indexes in `indexed`, and conversations about their images."""
    from data_pipelines.indexing import index_shards
    from data_pipelines.shards import ImageText, write_shards

    images, each = jpegs(64), -(-samples // SHARDS)
    for name in ("tars", "indexed"):
        pairs = (ImageText(images[n % 64], "words " * (1 + n % 9) + str(n)) for n in range(samples))
        shards = [str(path) for path in write_shards(pairs, folder / name, each)]
    list(index_shards(shards))
    with (folder / "talks.jsonl").open("w") as lines:
        for number in range(samples):
            asked = {"from": "human", "value": "<image>" + "what " * (1 + number % 5)}
            said = {"from": "gpt", "value": "an answer " * (1 + number % 7)}
            lines.write(json.dumps({"image": f"{number % each:09d}.jpg", "conversations": [asked, said]}) + "\n")


def source_of(case: str, folder: Path) -> Any:
    from data_pipelines.sources.llava_json import LlavaJsonConfig
    from data_pipelines.sources.webdataset import WebDatasetConfig

    if case == "json":
        first = min((folder / "tars").glob("*.tar"))
        return LlavaJsonConfig(files=str(folder / "talks.jsonl"), image_shards=str(first))
    return WebDatasetConfig(shards=str(folder / case / "*.tar"), index="require" if case == "indexed" else "never")


def stream(case: str, folder: Path) -> Iterator[int]:
    """Records of batch after batch, endlessly; the position is taken at each, as a run takes it."""
    from data_pipelines.loader import Loader
    from data_pipelines.preparation import Preparation
    from data_pipelines.record import ImagePart, Record, TextPart
    from data_pipelines.rendered import RenderedRecord
    from data_pipelines.stream_config import StreamConfig
    from data_pipelines.transforms.image import ImageTransformConfig, decode_image

    def render(record: Record) -> RenderedRecord:
        parts = [part for turn in record.turns for part in turn.parts]
        images = tuple(part for part in parts if isinstance(part, ImagePart))
        words = sum(len(part.text) for part in parts if isinstance(part, TextPart))
        tokens = np.arange(1 + IMAGE_TOKENS + words // 4, dtype=np.int32)
        return RenderedRecord(record.key, tokens, tokens > IMAGE_TOKENS, tokens > IMAGE_TOKENS, (1,), images)

    transform = ImageTransformConfig(size=(SIDE, SIDE))
    preparation = Preparation(render, lambda data: decode_image(data, transform), IMAGE_TOKENS, (SIDE, SIDE))
    config = StreamConfig(mixture={"data": 1.0}, lanes=4, row_length=256, images_per_row=16)
    with Loader(config, {"data": source_of(case, folder)}, preparation, 8) as loader:
        for loaded in loader:
            json.dumps(loaded.position.to_json())
            yield loaded.report.records


def memory_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def looks(counts: Iterator[int], records: int) -> np.ndarray:
    """Megabytes at LOOKS moments, each after as many records."""
    seen, found = 0, []
    for count in counts:
        seen += count
        while seen * LOOKS >= records * (len(found) + 1):
            found.append(memory_mb())
        if len(found) >= LOOKS:
            return np.array(found[:LOOKS])
    raise RuntimeError("the stream ended")


def measured(case: str, folder: Path, records: int) -> dict[str, float]:
    begun, used = time.perf_counter(), time.process_time()
    found = looks(stream(case, folder), records)
    rest = found[WARM:]
    slope, _ = np.polyfit(np.arange(len(rest)), rest, 1)
    figures = {
        "first_mb": found[0],
        "warm_mb": rest[0],
        "last_mb": rest[-1],
        "grown_mb": slope * (len(rest) - 1),
        "spread_mb": rest.max() - rest.min(),
        "records_per_s": records / (time.perf_counter() - begun),
        "cpu_ms": 1000 * (time.process_time() - used) / records,
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


def answered(answer: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    answer.send(work(*arguments))


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a function gives in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answered, args=(theirs, work, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} {arguments[0]} failed; its traceback is above.") from None
    finally:
        process.join()


CASES = ("tars", "indexed", "json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500_000, help="that each case reads")
    parser.add_argument("--samples", type=int, default=64_000, help="that there are")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), options.samples)
        found = {case: in_a_process(measured, case, Path(folder), options.records) for case in options.cases}
    told = {"records": options.records, "samples": options.samples, "promise": f"grown_mb at most {GROWN_MB}"}
    print(json.dumps({"benchmark": "memory"} | told | {"cases": found}))


if __name__ == "__main__":
    main()
