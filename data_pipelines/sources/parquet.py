"""Conversations in parquet files, as The Cauldron and FineVision have them: images and texts are columns of lists.

A row is read with its row group, of which the last ones stay in memory. A shuffle window that spans more reads them
again and again; `mllm data build` makes shards of the files that stream without this bound.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.record import ImageBytes, ImagePart, Record
from data_pipelines.sources.conversation import shown, turns_of
from data_pipelines.sources.filters import FieldFilter, refusal
from data_pipelines.sources.messages import Message, with_marks
from data_pipelines.sources.row_groups import OpenFile, RowGroups
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.storage import Storage
from data_pipelines.suggestion import suggest


class ParquetConfig(Config):
    """Rows of `images: [{bytes, path}]` and `texts: [{user, assistant}]`; needs pyarrow (`mllm_jax[parquet]`)."""

    kind: Literal["parquet"] = "parquet"
    files: str | tuple[str, ...]
    """Brace ranges, globs or a list; local paths or any fsspec address."""
    images: str = "images"
    """Column of the image or images, encoded; they stand before the first question unless `<image>` marks say where."""
    texts: str = "texts"
    """Column of the questions and answers."""
    filters: dict[str, FieldFilter] = Field(default={})
    """Bounds on other columns, such as FineVision's ratings (`relevance_min: {at_least: 4}`). Rows that do not pass are
    left out and counted as `filtered_COLUMN`."""
    memory_bytes: int = Field(default=256 * 2**20, gt=0)
    """Bytes of row groups that a process keeps besides the one that it reads; where those that its lanes shuffle take
    more, they are read again and again."""

    @property
    def columns(self) -> list[str]:
        """All that are read."""
        return list(dict.fromkeys([self.images, self.texts, *self.filters]))

    def open(self, storage: Storage) -> "ParquetSource":
        """Lists the files, and looks for the columns in the first that can be read.

        Raises:
            FileNotFoundError: a pattern names no file.
            ValueError: pyarrow is not installed, or a column is not there.
        """
        return ParquetSource(self, storage)


class ParquetSource:
    """Rows by number."""

    def __init__(self, config: ParquetConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self._rows = RowGroups(config.columns, config.memory_bytes, storage)
        self.shards = expand(config.files, "files")
        self._check_columns()

    def fingerprint(self) -> dict[str, Any]:
        described = self._config.model_dump(mode="json", exclude={"files", "memory_bytes"})
        return described | identity(self.shards, self._storage)

    def count(self, shard: int) -> int | None:
        # Not told, so that a lane reads rows in their order, group by group.
        return None

    def entries(self, shard: int) -> int:
        file = self._rows.open(self.shards[shard])
        return file.rows if isinstance(file, OpenFile) else 1

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        return (self.locate(shard, number) for number in range(place, self.entries(shard)))

    def locate(self, shard: int, place: int) -> Entry:
        """Returns the entry of a row; a file that is no parquet file is one entry."""
        return Entry(shard, place, place + 1, None)

    def read(self, entry: Entry) -> Record | Skip:
        path = self.shards[entry.shard]
        key = f"{path}:{entry.place}"
        file = self._rows.open(path)
        row = self._rows.row(file, entry.place, key) if isinstance(file, OpenFile) else file
        return row if isinstance(row, Skip) else record_of(row, self._config, key)

    def _check_columns(self) -> None:
        files = (self._rows.open(path) for path in self.shards)
        first = next((file for file in files if isinstance(file, OpenFile)), None)
        if first is None:
            raise ValueError(f"none of the {len(self.shards)} files from {self.shards[0]} on is a parquet file")
        missing = [name for name in self._config.columns if name not in first.columns]
        if missing:
            near = "".join(suggest(name, first.columns) for name in missing[:1])
            has = ", ".join(first.columns)
            raise ValueError(f"{first.path} has no column {', '.join(missing)}.{near} Its columns: {has}")


def record_of(row: dict[str, Any], config: ParquetConfig, key: str) -> Record | Skip:
    """Returns the record of a row, or why it is none."""
    unwanted = refusal(config.filters, row, key) if config.filters else None
    if unwanted is not None:
        return unwanted
    images = _images(row[config.images], key)
    if isinstance(images, Skip):
        return images
    said = row[config.texts]
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        return Skip("not_a_conversation", key, f"{config.texts} is {shown(said)}")
    messages: list[Message] = [
        {"from": role, "value": each.get(role)} for each in said for role in ("user", "assistant")
    ]
    turns = turns_of(with_marks(messages, len(images)), images, key)
    return turns if isinstance(turns, Skip) else Record(key, turns)


def _images(column: Any, key: str) -> list[ImagePart] | Skip:
    found: list[ImagePart] = []
    for image in column if isinstance(column, list) else [] if column is None else [column]:
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            return Skip("missing_image", key, f"the row holds no bytes of its image, but {shown(image)}")
        if not data:
            return Skip("empty_image", key, "the image has no bytes")
        found.append(ImagePart(ImageBytes(data)))
    return found
