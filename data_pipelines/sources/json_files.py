"""JSON arrays and JSONL files of records that name images, read one record at a time through an index of offsets."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import model_validator

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, Record
from data_pipelines.sources.image_places import open_images
from data_pipelines.sources.json_index import RECORD_LIMIT, load_index
from data_pipelines.sources.json_object import json_object
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.storage import Storage


class JsonFilesConfig(Config):
    """Where the records and their images are; each kind of record has a `kind` besides."""

    files: str | tuple[str, ...]
    """Local JSON or JSONL files: a path, a brace range, a glob or a list."""
    images: str | None = None
    """Folder below which the images are that the records name; what lies outside is refused, also behind a link."""
    image_shards: str | tuple[str, ...] | None = None
    """Tars whose members are the images that the records name."""
    index_cache: str | None = None
    """Folder for the index of record offsets; null: beside the file, or in memory where that may not be written."""

    @model_validator(mode="after")
    def _one_place(self) -> "JsonFilesConfig":
        if self.images is not None and self.image_shards is not None:
            raise ValueError("images and image_shards are both set; images come from a folder or from tars")
        return self


class JsonFiles(ABC):
    """Reads one record at a time by its offset; the file is never in memory."""

    def __init__(self, config: JsonFilesConfig, storage: Storage, paths: tuple[str, ...] | None = None) -> None:
        """Indexes the files (once; the index is cached) and the image tars.

        Args:
            paths: of the JSON files, where `config.files` names others; None: they are its own.

        Raises:
            FileNotFoundError: a file, the image folder or an image tar is not there.
        """
        self._config = config
        self._storage = storage
        self.shards = expand(config.files, "files") if paths is None else paths
        self._image_shards = expand(config.image_shards, "image_shards") if config.image_shards else ()
        self._places = open_images(config.images, self._image_shards, storage)
        self._spans: list[np.ndarray] = [load_index(path, storage, config.index_cache) for path in self.shards]

    def fingerprint(self) -> dict[str, Any]:
        described = self._config.model_dump(mode="json", include={"kind"}) | identity(self.shards, self._storage)
        return described | ({"images": identity(self._image_shards, self._storage)} if self._image_shards else {})

    def count(self, shard: int) -> int:
        return len(self._spans[shard])

    def entries(self, shard: int) -> int:
        return self.count(shard)

    def number(self, shard: int, place: int) -> int:
        """Returns the number in its file of the record at a place."""
        return place

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        return (self.locate(shard, each) for each in range(place, self.count(shard)))

    def locate(self, shard: int, place: int) -> Entry:
        offset, length = (int(value) for value in self._spans[shard][self.number(shard, place)])
        content: Any = (offset, length)
        key = self.key(shard, place)
        if length < 0:
            content = Skip("truncated", key, f"from byte {offset} on the file is no JSON; the rest of it is lost")
        elif length > RECORD_LIMIT:
            content = Skip("record_too_large", key, f"{length} bytes")
        return Entry(shard, place, place + 1, content)

    def read(self, entry: Entry) -> Record | Skip:
        value = self.value(entry)
        return value if isinstance(value, Skip) else self.record(value, self.key(entry.shard, entry.place))

    def key(self, shard: int, place: int) -> str:
        """Returns what the record at a place is called: its file, and its number there."""
        return f"{self.shards[shard]}:{self.number(shard, place)}"

    def value(self, entry: Entry) -> dict[str, Any] | Skip:
        """Returns the JSON object of an entry as it is."""
        if isinstance(entry.content, Skip):
            return entry.content
        data = self._storage.read_range(ByteRange(self.shards[entry.shard], *entry.content))
        return json_object(data, self.key(entry.shard, entry.place))

    @abstractmethod
    def record(self, value: dict[str, Any], key: str) -> Record | Skip:
        """Returns what a JSON object says."""

    def images(self, named: Any, key: str) -> list[ImagePart] | Skip:
        """Returns the images that a record names: one, a list or none."""
        names = [] if named is None else [named] if isinstance(named, str) else named
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return Skip("not_text", key, "image is neither a string nor a list of strings")
        images: list[ImagePart] = []
        for name in names:
            found = self._places.find(name, key)
            if isinstance(found, Skip):
                return found
            images.append(ImagePart(found))
        return images
