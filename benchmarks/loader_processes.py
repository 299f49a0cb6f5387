"""The loader in threads of one process and in processes of its own; prints one JSON line.

    python benchmarks/loader_processes.py [--samples 2000] [--seconds 5] [--repeats 3] [--processes 0 1 2]

Reads the shards of benchmarks/loaders.py (512 x 384 JPEGs with captions, to 224 x 224 by the fast resize, 49 tokens an
image), with a real tokenizer and chat template, in 8 lanes. By the number of processes, 0 being two decoding threads of
one process (the others have one each), medians over repeats of what `LoaderSpeed` says, `decoded` and `blank`: with
black images that cost nothing, so that what is left is reading, Python and copying.

    samples_per_s, memory_mb   of all processes
    cpu_ms                     CPU milliseconds a sample of all processes
    packing_ms, gathering_ms   of these, of the threads that pack, and of the one that brings rows together
    open_s                     until the first batch is there

`limits` are samples a second with any number of cores. Of one process, whose threads share Python's lock: at most 1 /
packing; at least 1 / the CPU time of everything but decoding and of decoding an image of 8 x 8 pixels, which is Python
more than pixels (`small_image_ms`). Of processes beside it: all together at most 1 / gathering.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from loaders import IMAGE_TOKENS, SIDE, generated_shards

LANES = 8
ROWS = 16
TEXT_TOKENS = 24


def write_tokenizer(path: Path) -> None:
    from data_pipelines.tokenizers.training import TokenizerTrainingConfig, train_sentencepiece

    captions = (f"a caption of some words, number {number}" for number in range(2000))
    path.write_bytes(train_sentencepiece(captions, TokenizerTrainingConfig(vocabulary_size=300)))


def measured(folder: str, processes: int, blank: bool, seconds: float) -> dict[str, float]:
    """Runs in a process of its own."""
    from data_pipelines.loader import Loader
    from data_pipelines.loader_speed import loader_speed
    from data_pipelines.loading.loader_config import LoaderConfig
    from data_pipelines.preparation_description import ConversationTexts, PreparationDescription
    from data_pipelines.sources.webdataset import WebDatasetConfig
    from data_pipelines.storage import Storage
    from data_pipelines.stream_config import StreamConfig
    from data_pipelines.tokenizer import load_tokenizer
    from data_pipelines.transforms.image import ImageTransformConfig
    from data_pipelines.transforms.templates import TEMPLATES

    tokenizer = load_tokenizer(Path(folder, "tokenizer.model"))
    texts = ConversationTexts(tokenizer=tokenizer, template=TEMPLATES["plain"], image_tokens=IMAGE_TOKENS)
    transform = ImageTransformConfig(size=(SIDE, SIDE), resize_with="fast_image_resize")
    description = PreparationDescription(texts=texts, transform=transform, blank=blank)
    stream = StreamConfig(
        mixture={"pairs": 1.0}, lanes=LANES, row_length=8 * (IMAGE_TOKENS + TEXT_TOKENS), images_per_row=8
    )
    work = LoaderConfig(processes=processes, threads=1 if processes else 2)
    opened: list[float] = []

    def open_loader() -> Loader:
        begun, storage = time.monotonic(), Storage()
        sources = {"pairs": WebDatasetConfig(shards=f"{folder}/*.tar")}
        loader = Loader(stream, sources, description.prepare(storage), ROWS, work=work, storage=storage)
        opened.append(begun)
        return loader

    def first(batch: Any) -> None:
        if len(opened) == 1:
            opened.append(time.monotonic())

    speed = loader_speed(open_loader, seconds, first)
    return {
        "samples_per_s": speed.samples_per_second,
        "cpu_ms": speed.cpu_ms_per_sample,
        "packing_ms": speed.packing_ms_per_sample or 0.0,
        "gathering_ms": speed.gathering_ms_per_sample or 0.0,
        "memory_mb": speed.memory_mb or 0.0,
        "open_s": opened[1] - opened[0],
    }


def alone(*arguments: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, *arguments).result()


def small_image_ms() -> float:
    """CPU milliseconds of decoding an image that has hardly a pixel."""
    from PIL import Image

    from data_pipelines.transforms.image import ImageTransformConfig, decode_image

    buffer, transform = io.BytesIO(), ImageTransformConfig(size=(8, 8), resize_with="fast_image_resize")
    Image.new("RGB", (12, 10), (200, 30, 60)).save(buffer, "JPEG")
    costs = []
    for _ in range(9):
        begun = time.thread_time()
        for _ in range(200):
            decode_image(buffer.getvalue(), transform)
        costs.append((time.thread_time() - begun) * 1000 / 200)
    return statistics.median(costs)


def limits(found: dict[str, dict[str, dict[str, float]]], small_image_ms: float) -> dict[str, float]:
    told: dict[str, float] = {}
    for name, speeds in found.items():
        if name == "0":
            told["one_process_at_least"] = 1000 / (speeds["blank"]["cpu_ms"] + small_image_ms)
            told["one_process_at_most"] = 1000 / speeds["decoded"]["packing_ms"]
        else:
            told["all_processes_at_most"] = 1000 / speeds["blank"]["gathering_ms"]
    return {name: round(value) for name, value in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        generated_shards(folder, options.samples, (85, 90), plain_headers=False)
        write_tokenizer(Path(folder, "tokenizer.model"))
        for _ in range(options.repeats):
            for processes in options.processes:
                for kind in ("decoded", "blank"):
                    speed = alone(folder, processes, kind == "blank", options.seconds)
                    runs.setdefault((str(processes), kind), []).append(speed)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (processes, kind), speeds in runs.items():
        median = {field: round(statistics.median(speed[field] for speed in speeds), 4) for field in speeds[0]}
        found.setdefault(processes, {})[kind] = median
    small = small_image_ms()
    told = {"benchmark": "loader_processes", "cores": os.cpu_count(), "small_image_ms": round(small, 4)}
    print(json.dumps(told | {"processes": found, "limits": limits(found, small)}))


if __name__ == "__main__":
    main()
