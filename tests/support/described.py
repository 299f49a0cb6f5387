"""Streams of small pictures with captions whose preparation is described, so that other processes can make it."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.loader import Loader, Share
from data_pipelines.loading.loaded_batch import LoadedBatch
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.preparation_description import ConversationTexts, PairTexts, PreparationDescription
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from data_pipelines.stream_config import StreamConfig
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.augmentation import AugmentationConfig, RandomCropConfig
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.templates import TEMPLATES
from tests.support.tiny_stream import BAD_IMAGE, pair, tar_bytes

TRANSFORM = ImageTransformConfig(size=(8, 8))
LANES = 6


def picture(number: int) -> bytes:
    size = (5 + number * 13 % 40, 5 + number * 29 % 40)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder: Path, counts: tuple[int, ...], bad_every: int = 0) -> dict[str, WebDatasetConfig]:
    """One tar a count; of every `bad_every` images one is none, 0: none is bad."""
    for shard, count in enumerate(counts):
        members, first = [], sum(counts[:shard])
        for number in range(first, first + count):
            bad = bad_every and number % bad_every == 0
            caption = f"picture {number} " + "red " * (number % 5)
            members += pair(f"{number:04d}", caption, BAD_IMAGE if bad else picture(number))
        (folder / f"{shard:03d}.tar").write_bytes(tar_bytes(members))
    return {"pairs": WebDatasetConfig(shards=str(folder / "*.tar"))}


def descriptions(tokenizer: Tokenizer) -> Mapping[str, PreparationDescription]:
    """By what is special in them."""
    texts = ConversationTexts(tokenizer=tokenizer, template=TEMPLATES["plain"], image_tokens=4)
    tiling = AnyResConfig(grids=((1, 2), (2, 1), (2, 2)))
    tiled = texts.model_copy(update={"tiling": tiling, "features": (2, 2)})
    asked = texts.model_copy(update={"instruction_tokenizer": tokenizer, "instruction_tokens": 5})
    pairs = PairTexts(tokenizer=tokenizer, length=12, first=(1,), last=(2,))
    augmentation = AugmentationConfig(crop=RandomCropConfig(scale=(0.2, 0.8)), flip=0.5)
    return {
        "plain": PreparationDescription(texts=texts, transform=TRANSFORM),
        "tiled": PreparationDescription(texts=tiled, transform=TRANSFORM),
        "augmented": PreparationDescription(texts=texts, transform=TRANSFORM, augmentation=augmentation),
        "instructed": PreparationDescription(texts=asked, transform=TRANSFORM),
        "pairs": PreparationDescription(texts=pairs, transform=TRANSFORM),
        "blank": PreparationDescription(texts=tiled, transform=TRANSFORM, blank=True),
    }


def stream(**changes: object) -> StreamConfig:
    values = {"mixture": {"pairs": 1.0}, "lanes": LANES, "shuffle_window": 5, "open_rows": 2}
    return StreamConfig(**(values | {"row_length": 96, "images_per_row": 12} | changes))


def open_described(
    description: PreparationDescription,
    sources: Mapping[str, object],
    processes: int,
    position: Mapping[str, object] | None = None,
    lanes: range | None = None,
    config: StreamConfig | None = None,
    prefetch: int = 2,
    storage: Storage | None = None,
) -> Loader:
    """A loader of two rows a lane."""
    storage, config = storage or Storage(), config or stream()
    work = LoaderConfig(processes=processes, prefetch=prefetch)
    return Loader(
        config,
        sources,
        description.prepare(storage),
        2 * config.lanes,
        share=Share(lanes=lanes),
        position=position,
        work=work,
        storage=storage,
    )


def same(first: LoadedBatch, second: LoadedBatch) -> bool:
    """Whether arrays, positions and reports are."""
    arrays = (
        one is two or (one.dtype == two.dtype and np.array_equal(one, two))
        for one, two in zip(first.batch, second.batch, strict=True)
    )
    return all(arrays) and (first.position, first.report) == (second.position, second.report)
