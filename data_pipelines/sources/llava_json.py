"""Conversations in LLaVA's JSON or JSONL, read one record at a time through an index of byte offsets."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, Record
from data_pipelines.sources.conversation import turns_of
from data_pipelines.sources.image_places import FolderImages, ImagePlaces, NoImages, TarImages
from data_pipelines.sources.json_index import RECORD_LIMIT, load_index
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.storage import Storage


class LlavaJsonConfig(Config):
    """A JSON array or JSONL file of `{id, image, conversations: [{from, value}]}`; images in a folder or in tars."""

    kind: Literal["llava_json"] = "llava_json"
    files: str | tuple[str, ...]
    """Local JSON or JSONL files: a path, a brace range, a glob or a list."""
    images: str | None = None
    """Folder below which the records' `image` paths are; what lies outside is refused, also behind a link."""
    image_shards: str | tuple[str, ...] | None = None
    """Tars whose members are the records' `image` paths."""
    index_cache: str | None = None
    """Folder for the index of record offsets; null: beside the file, or in memory where that may not be written."""

    @model_validator(mode="after")
    def _one_place(self) -> "LlavaJsonConfig":
        if self.images is not None and self.image_shards is not None:
            raise ValueError("images and image_shards are both set; images come from a folder or from tars")
        return self

    def open(self, storage: Storage) -> "LlavaJsonSource":
        """Indexes the files (once; the index is cached) and the image tars.

        Raises:
            FileNotFoundError: a file, the image folder or an image tar is not there.
        """
        return LlavaJsonSource(self, storage)


class LlavaJsonSource:
    """Reads one record at a time by its offset; the file is never in memory."""

    def __init__(self, config: LlavaJsonConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self.shards = expand(config.files, "files")
        self._image_shards = expand(config.image_shards, "image_shards") if config.image_shards else ()
        self._places = self._open_images()
        self._spans: list[np.ndarray] = [load_index(path, storage, config.index_cache) for path in self.shards]

    def fingerprint(self) -> dict[str, Any]:
        described = self._config.model_dump(mode="json", include={"kind"}) | identity(self.shards, self._storage)
        return described | ({"images": identity(self._image_shards, self._storage)} if self._image_shards else {})

    def count(self, shard: int) -> int | None:
        return len(self._spans[shard])

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        return (self.locate(shard, number) for number in range(place, len(self._spans[shard])))

    def locate(self, shard: int, place: int) -> Entry:
        offset, length = (int(value) for value in self._spans[shard][place])
        content: Any = (offset, length)
        key = f"{self.shards[shard]}:{place}"
        if length < 0:
            content = Skip("truncated", key, f"from byte {offset} on the file is no JSON; the rest of it is lost")
        elif length > RECORD_LIMIT:
            content = Skip("record_too_large", key, f"{length} bytes")
        return Entry(shard, place, place + 1, content)

    def read(self, entry: Entry) -> Record | Skip:
        if isinstance(entry.content, Skip):
            return entry.content
        path = self.shards[entry.shard]
        key = f"{path}:{entry.place}"
        data = self._storage.read_range(ByteRange(path, *entry.content))
        try:
            value = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            return Skip("not_utf8", key, str(error))
        except (ValueError, RecursionError) as error:
            return Skip("bad_json", key, str(error))
        if not isinstance(value, dict):
            return Skip("not_an_object", key, f"a {type(value).__name__}")
        images = self._images(value.get("image"), key)
        if isinstance(images, Skip):
            return images
        turns = turns_of(value.get("conversations"), images, key)
        return turns if isinstance(turns, Skip) else Record(key, turns)

    def _images(self, named: Any, key: str) -> list[ImagePart] | Skip:
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

    def _open_images(self) -> ImagePlaces:
        if self._config.images is not None:
            return FolderImages(self._config.images, self._storage)
        return TarImages(self._image_shards, self._storage) if self._image_shards else NoImages()
