"""A tiny stream for tests of the data pipelines: tars made by hand, one token a letter, images of 4 x 4 pixels."""

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.preparation import Preparation
from data_pipelines.record import ImagePart, Record, TextPart
from data_pipelines.rendered import RenderedRecord
from data_pipelines.sources.source import Entry
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.stream_config import StreamConfig
from data_pipelines.transforms.image_error import ImageError

IMAGE_TOKENS = 3
IMAGE_TOKEN = 1
BAD_IMAGE = b"not an image"


def render(record: Record) -> RenderedRecord:
    """Start token, then three tokens an image and one a letter; what is learned is supervised."""
    tokens, supervised, in_answer, starts, images = [2], [False], [False], [], []
    for turn in record.turns:
        for part in turn.parts:
            if isinstance(part, ImagePart):
                starts.append(len(tokens))
                images.append(part)
                tokens += [IMAGE_TOKEN] * IMAGE_TOKENS
                supervised += [False] * IMAGE_TOKENS
            elif isinstance(part, TextPart):
                letters = [10 + byte for byte in part.text.encode()]
                tokens += letters
                supervised += [turn.learn] * len(letters)
        in_answer += [turn.role == "assistant"] * (len(tokens) - len(in_answer))
    marks = np.array(supervised, np.bool_), np.array(in_answer, np.bool_)
    return RenderedRecord(record.key, np.array(tokens, np.int32), *marks, tuple(starts), tuple(images))


def decode(data: bytes) -> np.ndarray:
    """Pixels that depend on every byte."""
    if data.startswith(BAD_IMAGE):
        raise ImageError("corrupt", "it says so itself")
    return np.frombuffer(hashlib.sha512(data).digest()[:48], np.uint8).reshape(4, 4, 3)


PREPARATION = Preparation(render, decode, IMAGE_TOKENS, (4, 4))


def tar_bytes(members: Sequence[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pair(key: str, caption: str, image: bytes | None = None) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image or f"pixels of {key}".encode()), (f"{key}.txt", caption.encode())]


def write_pairs(folder: Path, sizes: Sequence[int], name: str = "pairs") -> WebDatasetConfig:
    """Writes one tar a size; captions differ in length."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, size in enumerate(sizes):
        members = [
            member
            for index in range(size)
            for member in pair(f"{index:04d}", f"{name} {shard} {index} " + "x" * (index * 7 % 11))
        ]
        (folder / f"{name}-{shard:03d}.tar").write_bytes(tar_bytes(members))
    return WebDatasetConfig(shards=str(folder / f"{name}-*.tar"))


def stream_config(**changes) -> StreamConfig:
    values = {
        "mixture": {"pairs": 1.0},
        "lanes": 2,
        "shuffle_window": 7,
        "open_rows": 2,
        "row_length": 64,
        "images_per_row": 3,
    }
    return StreamConfig(**(values | changes))


class MemorySource:
    """A source whose shards are just numbers of entries."""

    def __init__(self, sizes: Sequence[int], indexed: bool, counted: bool = True) -> None:
        self.shards = tuple(f"shard-{index}" for index in range(len(sizes)))
        self._sizes = sizes
        self._indexed = indexed
        self._counted = counted

    def fingerprint(self) -> dict:
        return {"sizes": list(self._sizes)}

    def count(self, shard: int) -> int | None:
        return self._sizes[shard] if self._indexed else None

    def entries(self, shard: int) -> int | None:
        return self._sizes[shard] if self._counted else None

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        return (self.locate(shard, number) for number in range(place, self._sizes[shard]))

    def locate(self, shard: int, place: int) -> Entry:
        return Entry(shard, place, place + 1, None)

    def read(self, entry: Entry) -> Record:
        return Record(key=f"{self.shards[entry.shard]}:{entry.place}", turns=())
