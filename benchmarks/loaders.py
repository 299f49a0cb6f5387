"""Reading, loading, decoding and resizing beside webdataset, torch's DataLoader and grain; prints one JSON line.

    python benchmarks/loaders.py [--samples 2000] [--repeats 5] [--workers 2] [--quality 85 90] [--plain-headers]

All read the same shards of 512 x 384 JPEGs, which the script makes from seeded noise with the spectrum of photographs,
and squash the images to 224 x 224. The shards are laid out as img2dataset's: webdataset's writer puts an extended
header with the time before each member; with `--plain-headers` there is none, as in the tars of GNU tar. Each loader
runs in a process of its own, all of them in turn in every repeat; figures are medians over the repeats:

    cpu_ms         CPU milliseconds a sample, of the process and its workers
    samples_per_s  after the first samples have come
    memory_mb      proportional set size of the process and its workers, above that of an interpreter with NumPy

Loaders: `raw` hands over the bytes of all members of a sample, `raw_indexed` (ours alone) those of shards that have an
index; `records` (ours alone) makes records, and hands over the bytes of their images; `packed` (ours alone) also packs
and places records that cost nothing to decode;
`exact` and `pillow` (ours) decode too, and resize with fast_image_resize and with Pillow.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import signal
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH, SIDE = 384, 512, 224
IMAGE_TOKENS = 49
BATCH = 64
DIFFERENT_IMAGES = 64
SECOND = 1_700_000_000
"""When all members were written."""


def photographs(count: int, quality: tuple[int, int]) -> list[bytes]:
    """JPEGs whose power spectrum falls with the frequency as that of photographs does."""
    from PIL import Image

    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT, np.fft.rfftfreq(WIDTH) * WIDTH)
    amplitude = 1 / np.maximum(frequency, 1) ** 1.5
    encoded = []
    for number in range(count):
        noise = np.fft.rfft2(random.standard_normal((4, HEIGHT, WIDTH)))
        light, *colours = np.fft.irfft2(noise * amplitude, (HEIGHT, WIDTH))
        planes = [light + 0.3 * colour for colour in colours]
        pixels = np.clip(128 + 60 * np.stack(planes, axis=-1) / light.std(), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality[0] + number % (quality[1] - quality[0] + 1))
        encoded.append(buffer.getvalue())
    return encoded


def generated_shards(folder: str, samples: int, quality: tuple[int, int], plain_headers: bool) -> list[str]:
    """Writes four shards of captioned photographs, each of which comes several times, and their indexes beside them."""
    from data_pipelines.sources.tar_index_files import make_index
    from data_pipelines.storage import Storage

    images, shards = photographs(min(samples, DIFFERENT_IMAGES), quality), []
    for shard in range(4):
        path = os.path.join(folder, f"{shard:05d}.tar")
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for number in range(shard * samples // 4, (shard + 1) * samples // 4):
                caption, key = f"a caption of some words, number {number}", f"{shard:05d}{number:06d}"
                described = json.dumps({"caption": caption, "key": key, "status": "success"})
                image = images[number % len(images)]
                for name, data in (("jpg", image), ("json", described.encode()), ("txt", caption.encode())):
                    header = tarfile.TarInfo(f"{key}.{name}")
                    header.size = len(data)
                    header.mtime = SECOND if plain_headers else SECOND + 1 / 7
                    tar.addfile(header, io.BytesIO(data))
        make_index(path, None, Storage())
        shards.append(path)
    return shards


def ours(shards: list[str], workers: int, decode: Callable[[bytes], np.ndarray]) -> Iterator[int]:
    """Our loader's batches: lanes, packed rows, pixels."""
    from data_pipelines.loader import Loader
    from data_pipelines.loading.loader_config import LoaderConfig
    from data_pipelines.preparation import Preparation
    from data_pipelines.record import ImagePart, Record
    from data_pipelines.rendered import RenderedRecord
    from data_pipelines.sources.webdataset import WebDatasetConfig
    from data_pipelines.stream_config import StreamConfig

    tokens = np.arange(IMAGE_TOKENS + 21, dtype=np.int32)
    supervised = tokens > IMAGE_TOKENS

    def render(record: Record) -> RenderedRecord:
        images = tuple(part for part in record.turns[0].parts if isinstance(part, ImagePart))
        return RenderedRecord(record.key, tokens, supervised, supervised, (1,), images)

    stream = StreamConfig(mixture={"pairs": 1.0}, lanes=2, row_length=8 * len(tokens), images_per_row=8)
    sources = {"pairs": WebDatasetConfig(shards=tuple(shards), index="never")}
    preparation = Preparation(render, decode, IMAGE_TOKENS, (SIDE, SIDE))
    with Loader(stream, sources, preparation, BATCH // 8, work=LoaderConfig(threads=workers)) as loader:
        for loaded in loader:
            yield loaded.report.records


def ours_raw(shards: list[str], workers: int, indexed: bool = False) -> Iterator[int]:
    """The bytes of all members of our samples, one after the other."""
    from data_pipelines.sources.tar_contents import contents
    from data_pipelines.sources.tar_index_files import load_index
    from data_pipelines.storage import Storage

    storage = Storage()
    while True:
        for shard in shards:
            for sample in contents(shard, storage, load_index(shard, None, storage) if indexed else None):
                yield "jpg" in sample[1]


def ours_raw_indexed(shards: list[str], workers: int) -> Iterator[int]:
    return ours_raw(shards, workers, indexed=True)


def ours_records(shards: list[str], workers: int) -> Iterator[int]:
    """Records of our source and the bytes of their images, one after the other."""
    from data_pipelines.record import ImagePart, Record
    from data_pipelines.sources.source import records
    from data_pipelines.sources.webdataset import WebDatasetConfig
    from data_pipelines.storage import Storage

    storage = Storage()
    while True:
        for record in records(WebDatasetConfig(shards=tuple(shards), index="never").open(storage)):
            if isinstance(record, Record) and isinstance(image := record.turns[0].parts[0], ImagePart):
                storage.read_image(image.source)
                yield 1


def ours_packed(shards: list[str], workers: int) -> Iterator[int]:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    return ours(shards, workers, lambda data: pixels)


def ours_decoded(library: str) -> Callable[[list[str], int], Iterator[int]]:
    def batches(shards: list[str], workers: int) -> Iterator[int]:
        from data_pipelines.transforms.image import ImageTransformConfig, decode_image

        transform = ImageTransformConfig.model_validate({"size": (SIDE, SIDE), "resize_with": library})
        return ours(shards, workers, lambda data: decode_image(data, transform))

    return batches


def by_pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def sample_by_pillow(sample: dict[str, Any]) -> tuple[np.ndarray, str]:
    return by_pillow(sample["jpg"]), sample["txt"].decode()


def webdataset_raw(shards: list[str], workers: int) -> Iterator[int]:
    import webdataset

    while True:
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            yield "jpg" in sample


def webdataset_loaded(shards: list[str], workers: int) -> Iterator[int]:
    import torch
    import webdataset

    torch.set_num_threads(1)
    dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).map(sample_by_pillow).repeat()
    for images, _ in torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers):
        yield len(images)


class GrainSource:
    """The records of our source at their places, for a loader that asks for them by number."""

    def __init__(self, shards: list[str]) -> None:
        from data_pipelines.sources.source import records
        from data_pipelines.sources.webdataset import WebDatasetConfig
        from data_pipelines.storage import Storage

        found = records(WebDatasetConfig(shards=tuple(shards)).open(Storage()))
        self.places = [
            (place.path, place.offset, place.length) for place in (r.turns[0].parts[0].source for r in found)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> np.ndarray:
        path, offset, length = self.places[number]
        with open(path, "rb") as file:
            file.seek(offset)
            return by_pillow(file.read(length))


def grain_loaded(shards: list[str], workers: int) -> Iterator[int]:
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.source(GrainSource(shards)).shuffle(seed=0).repeat().batch(BATCH).to_iter_dataset()
    for images in dataset.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers)):
        yield len(images)


LOADERS: dict[str, Callable[[list[str], int], Iterator[int]]] = {
    "ours_raw": ours_raw,
    "ours_raw_indexed": ours_raw_indexed,
    "ours_records": ours_records,
    "webdataset_raw": webdataset_raw,
    "ours_packed": ours_packed,
    "ours_exact": ours_decoded("fast_image_resize"),
    "ours_pillow": ours_decoded("pillow"),
    "webdataset_torch": webdataset_loaded,
    "grain": grain_loaded,
}


def processes() -> list[Path]:
    """The `/proc` folders of this process and all below it."""
    found = [Path("/proc/self").resolve()]
    for folder in found:
        for task in folder.glob("task/*/children"):
            found += [Path("/proc", child) for child in task.read_text().split()]
    return found


def cpu_seconds() -> float:
    """Of this process and of its living children, which the system counts in hundredths of a second."""
    ticks = 0
    for folder in processes()[1:]:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def memory_mb() -> float:
    """Proportional set size of this process and of its living children."""
    lines = (line for folder in processes() for line in (folder / "smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def measure(name: str, shards: list[str], workers: int, samples: int, answer: Connection) -> None:
    """Runs in a process of its own: sends CPU milliseconds a sample, samples/s and MB above the bare interpreter.

    The first quarter of the samples warms up. But for reading alone, which begins anew each time, no sample comes
    twice: our loader remembers where the samples of small shards stand.
    """
    bare = memory_mb()
    counts = LOADERS[name](shards, workers)
    warm = count = 0
    while warm < samples // 4:
        warm += next(counts)
    wanted = 4 * samples if name in READING else samples - warm
    wall, cpu = time.perf_counter(), cpu_seconds()
    while count < wanted:
        count += next(counts)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    answer.send((1000 * cpu / count, count / wall, memory_mb() - bare))
    answer.close()
    # Waiting for workers is not measured, and those of grain would go on beside the next loader.
    for folder in processes()[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(folder.name), signal.SIGKILL)
    os._exit(0)


def measured(name: str, *arguments: Any) -> tuple[float, ...]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, *arguments, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"The loader {name} failed; its traceback is above.") from None
    finally:
        process.join()


def installed(name: str) -> bool:
    needed = {"webdataset_raw": ("webdataset",), "webdataset_torch": ("webdataset", "torch"), "grain": ("grain",)}
    return all(importlib.util.find_spec(package) for package in needed.get(name, ()))


READING = ("ours_raw", "ours_raw_indexed", "ours_records", "webdataset_raw")
"""Loaders that do nothing else."""
FIELDS = ("cpu_ms", "samples_per_s", "memory_mb")


def promises(median: dict[str, dict[str, float]]) -> dict[str, float]:
    """The ratios that the loader is held to, by what they should be."""
    ours, peer = median["ours_exact"], median.get("webdataset_torch")
    found = {"packed_cpu_ms (at most 0.05)": median["ours_packed"]["cpu_ms"]}
    if peer is not None:
        found["exact_cpu_to_webdataset_torch (at most 0.5)"] = round(ours["cpu_ms"] / peer["cpu_ms"], 3)
        found["exact_speed_to_webdataset_torch (at least 1.9)"] = round(
            ours["samples_per_s"] / peer["samples_per_s"], 2
        )
        for name, index in (("ours_raw", "without"), ("ours_raw_indexed", "with")):
            raw = median["webdataset_raw"]["cpu_ms"] / median[name]["cpu_ms"]
            found[f"raw_cpu_of_webdataset_to_ours_{index}_index (at least 10)"] = round(raw, 1)
    return found | {"memory_mb (at most 150)": ours["memory_mb"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quality", type=int, nargs=2, default=(85, 90))
    parser.add_argument("--plain-headers", action="store_true")
    options = parser.parse_args()
    names = [name for name in LOADERS if installed(name)]
    runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        shards = generated_shards(folder, options.samples, tuple(options.quality), options.plain_headers)
        size = sum(os.path.getsize(shard) for shard in shards) / options.samples / 1000
        for _ in range(options.repeats):
            for name in names:
                runs[name].append(measured(name, shards, options.workers, options.samples))
    median = {name: {field: middle(rows, place) for place, field in enumerate(FIELDS)} for name, rows in runs.items()}
    found = {"benchmark": "loaders", "samples": options.samples, "kb_a_sample": round(size, 1)}
    found["plain_headers"] = options.plain_headers
    found["not_installed"] = [name for name in LOADERS if name not in names]
    print(json.dumps(found | {"loaders": median, "promises": promises(median)}))


def middle(rows: list[tuple[float, ...]], place: int) -> float:
    return round(statistics.median(row[place] for row in rows), 4)


if __name__ == "__main__":
    main()
