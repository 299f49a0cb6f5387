"""Data sets of TensorFlow Datasets in array_record files, read at random places and without TensorFlow."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.permutation import seed_of
from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.sources.shard_list import identity
from data_pipelines.sources.source import Entry
from data_pipelines.sources.tfds_mappings import TfdsMapping
from data_pipelines.sources.tfds_splits import open_split
from data_pipelines.storage import Storage

_DAMAGED = ("Corrupted", "ArrayRecord file should be")
"""How array_record's errors begin where a file is damaged; others say that it could not be read."""


class TfdsConfig(Config):
    """A data set that TensorFlow Datasets has prepared with `file_format="array_record"`; nothing is downloaded."""

    kind: Literal["tfds"] = "tfds"
    name: str = Field(pattern=r"^\w+(/[\w.\-]+)?:[\w.\-]+$")
    """`NAME:VERSION` or `NAME/CONFIG:VERSION`, such as `coco_captions/2014:1.1.0`."""
    data_dir: str
    """Local folder of prepared data sets: NAME/CONFIG/VERSION below it holds dataset_info.json."""
    split: str = "train"
    """As in TFDS: `train`, `validation[:10%]`, `train[5000:]+test` ..."""
    mapping: TfdsMapping
    """What of an example is image, question and answer."""

    @property
    def folder(self) -> Path:
        """Where the prepared data set is."""
        return Path(self.data_dir).expanduser() / self.name.replace(":", "/")

    def open(self, storage: Storage) -> "TfdsSource":
        """Opens the data set; `storage` is not asked, array_record reads its files itself.

        Raises:
            FileNotFoundError: the data set, or one of its files, is not there.
            ValueError: the package is not installed, or the data set has another file format, no such split, or no such
                feature.
        """
        return TfdsSource(self, storage)


class TfdsSource:
    """Examples by number; the source is one shard."""

    def __init__(self, config: TfdsConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        opened = open_split(config.folder, config.split, config.mapping)
        self._examples, self._names, self._files = opened.examples, opened.class_names, opened.files
        self.shards = (f"{config.folder}/{config.split}",)

    def fingerprint(self) -> dict[str, Any]:
        described = self._config.model_dump(mode="json", exclude={"data_dir"})
        return described | {"examples": len(self._examples)} | identity(self._files, self._storage)

    def count(self, shard: int) -> int | None:
        return len(self._examples)

    def entries(self, shard: int) -> int | None:
        return self.count(shard)

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        return (self.locate(shard, number) for number in range(place, len(self._examples)))

    def locate(self, shard: int, place: int) -> Entry:
        return Entry(shard, place, place + 1, None)

    def read(self, entry: Entry) -> Record | Skip:
        key = f"{self.shards[entry.shard]}:{entry.place}"
        example = self._example(entry.place, key)
        if isinstance(example, Skip):
            return example
        return self._config.mapping.record(example, key, seed_of("tfds", entry.shard, entry.place), self._names)

    def _example(self, number: int, key: str) -> Mapping[str, Any] | Skip:
        from google.protobuf.message import DecodeError

        try:
            example: Mapping[str, Any] = self._examples[number]
        except RuntimeError as error:
            if str(error).startswith(_DAMAGED):
                return Skip("corrupt_record", key, str(error))
            raise OSError(f"could not read {key}: {error}") from error
        except (DecodeError, ValueError, TypeError, KeyError) as error:
            return Skip("bad_example", key, f"it does not fit the data set's features: {error}")
        return example
