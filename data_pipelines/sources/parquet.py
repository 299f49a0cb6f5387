"""Conversations in parquet files, as The Cauldron and FineVision have them: images and texts are columns of lists.

A row is read with its row group, of which the last few stay in memory. A shuffle window that spans more groups reads
them again and again; `mllm data build` makes shards of the files that stream without this bound.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import fsspec
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.record import ImageBytes, ImagePart, Record
from data_pipelines.sources.conversation import shown, turns_of
from data_pipelines.sources.filters import FieldFilter, refusal
from data_pipelines.sources.messages import Message, with_marks
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.storage import Storage, is_local


class ParquetConfig(Config):
    """Rows of `images: [{bytes, path}]` and `texts: [{user, assistant}]`; needs pyarrow (`mllm_jax[parquet]`)."""

    kind: Literal["parquet"] = "parquet"
    files: str | tuple[str, ...]
    """Brace ranges, globs or a list; local paths or any fsspec address."""
    images: str = "images"
    """Column of the images, encoded; they stand before the first question unless `<image>` marks say where."""
    texts: str = "texts"
    """Column of the questions and answers."""
    filters: dict[str, FieldFilter] = Field(default={})
    """Bounds on other columns, such as FineVision's ratings (`relevance_min: {at_least: 4}`). Rows that do not pass are
    left out and counted as `filtered_COLUMN`."""
    groups_in_memory: int = Field(default=16, gt=0)
    """Row groups that are kept; fewer than a lane's shuffle window spans are read again and again."""

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
        try:
            import pyarrow.parquet
        except ImportError:
            raise ValueError("parquet files are read by pyarrow: pip install 'mllm_jax[parquet]'") from None
        self._parquet = pyarrow.parquet
        self._damaged = pyarrow.lib.ArrowException
        self._config = config
        self._storage = storage
        self.shards = expand(config.files, "files")
        self._file = lru_cache(maxsize=config.groups_in_memory)(self._opened)
        self._group = lru_cache(maxsize=config.groups_in_memory)(self._read_group)
        self._check_columns()

    def fingerprint(self) -> dict[str, Any]:
        described = self._config.model_dump(mode="json", exclude={"files", "groups_in_memory"})
        return described | identity(self.shards, self._storage)

    def count(self, shard: int) -> int | None:
        # Not told, so that a lane reads rows in their order, group by group.
        return None

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        file = self._file(shard)
        if isinstance(file, Skip):
            if place == 0:
                yield Entry(shard, 0, 1, file)
            return
        for number in range(place, file.metadata.num_rows):
            yield Entry(shard, number, number + 1, None)

    def locate(self, shard: int, place: int) -> Entry:
        file = self._file(shard)
        return Entry(shard, place, place + 1, file if isinstance(file, Skip) else None)

    def read(self, entry: Entry) -> Record | Skip:
        if isinstance(entry.content, Skip):
            return entry.content
        key = f"{self.shards[entry.shard]}:{entry.place}"
        group, row = self._place_of(entry.shard, entry.place)
        try:
            table = self._group(entry.shard, group)
        except (self._damaged, OSError) as error:
            # Pages that are damaged are an OSError too, without the number that the system gives its own.
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise
            return Skip("bad_row_group", key, f"group {group}: {error}")
        return record_of(table.slice(row, 1).to_pylist()[0], self._config, key)

    def _check_columns(self) -> None:
        files = (self._file(shard) for shard in range(len(self.shards)))
        first = next((file for file in files if not isinstance(file, Skip)), None)
        if first is None:
            raise ValueError(f"none of the {len(self.shards)} files from {self.shards[0]} on is a parquet file")
        missing = [name for name in self._config.columns if name not in first.schema_arrow.names]
        if missing:
            raise ValueError(f"there is no column {', '.join(missing)}; columns: {', '.join(first.schema_arrow.names)}")

    def _opened(self, shard: int) -> Any:
        """A file, or the `Skip` of one that is none."""
        path = self.shards[shard]
        try:
            if is_local(path):
                return self._parquet.ParquetFile(path.removeprefix("file://"))
            return self._parquet.ParquetFile(fsspec.open(path, "rb").open())
        except self._damaged as error:
            return Skip("bad_parquet", path, str(error))

    def _place_of(self, shard: int, number: int) -> tuple[int, int]:
        """The row group that a row is in, and its number there."""
        metadata = self._file(shard).metadata
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if number < rows:
                return group, number
            number -= rows
        raise ValueError(f"{self.shards[shard]} has fewer rows than before: the file was rewritten.")

    def _read_group(self, shard: int, group: int) -> Any:
        return self._file(shard).read_row_group(group, columns=self._config.columns)


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
    found = []
    for image in column or ():
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            return Skip("missing_image", key, f"the row holds no bytes of its image, but {shown(image)}")
        if not data:
            return Skip("empty_image", key, "the image has no bytes")
        found.append(ImagePart(ImageBytes(data)))
    return found
