"""Every kind of source behind one config field."""

import os
from itertools import islice
from typing import Annotated

from pydantic import Field, TypeAdapter

from data_pipelines.record import Record
from data_pipelines.sources.llava_blend import BLENDS, LlavaBlendConfig
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.mmc4 import Mmc4Config
from data_pipelines.sources.obelics import ObelicsConfig
from data_pipelines.sources.parquet import ParquetConfig
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.sources.qwen_vl_json import QwenVlJsonConfig
from data_pipelines.sources.records import RecordsConfig
from data_pipelines.sources.shard_list import expand
from data_pipelines.sources.sharegpt_json import ShareGptJsonConfig
from data_pipelines.sources.tfds import TfdsConfig
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage

SourceConfig = Annotated[
    WebDatasetConfig
    | LlavaJsonConfig
    | LlavaBlendConfig
    | ShareGptJsonConfig
    | QwenVlJsonConfig
    | ParquetConfig
    | PreferenceJsonConfig
    | RecordsConfig
    | Mmc4Config
    | ObelicsConfig
    | TfdsConfig,
    Field(discriminator="kind"),
]
"""Each kind has `open(storage) -> Source`."""

HOLDS_PAIRS = (PreferenceJsonConfig, RecordsConfig)
"""Kinds whose records may be preference pairs."""

_LOOKED_AT = 3


def source_of_path(path: str, images: str | None = None, storage: Storage | None = None) -> SourceConfig:
    """Returns the source that a path alone describes: tar shards of pairs or of records, parquet, or some JSON(L).

    What the first record of a JSON file is like says which kind it is; LLaVA's where it is like no other.

    Args:
        path: shards (any pattern), a folder of shards, or a file that ends in .parquet, .json, .jsonl or, a blend of
            JSON files, .yaml.
        images: image folder of JSON files; None: `images/` beside `path` if it is there, else the folder of `path`.
        storage: what reads that record; None: one of the defaults.

    Raises:
        FileNotFoundError: a pattern names no shard.
    """
    if path.endswith((".json", ".jsonl")):
        kind = _kind_of_json(path, storage or Storage())
        found = {"files": path, "images": images or image_folder(path), "kind": kind}
        chosen: SourceConfig = TypeAdapter(SourceConfig).validate_python(found)
        return chosen
    if path.endswith(BLENDS):
        return LlavaBlendConfig(files=path, images=images or image_folder(path))
    if path.endswith(".parquet"):
        return ParquetConfig(files=path)
    shards = os.path.join(path, "*.tar") if os.path.isdir(path) else path
    made = _holds_records(expand(shards)[0], storage or Storage())
    return RecordsConfig(shards=shards) if made else WebDatasetConfig(shards=shards)


def _holds_records(shard: str, storage: Storage) -> bool:
    """Whether one of the first samples of a tar is a record as `mllm data build` writes them."""
    source = RecordsConfig(shards=shard, index="never").open(storage)
    return any(isinstance(source.read(entry), Record) for entry in islice(source.walk(0), _LOOKED_AT))


def _kind_of_json(path: str, storage: Storage) -> str:
    """The kind of the first record of a file that is a JSON object."""
    source = LlavaJsonConfig(files=path).open(storage)
    values = (source.value(entry) for entry in islice(source.walk(0), _LOOKED_AT))
    first = next((value for value in values if isinstance(value, dict)), {})
    if "text_list" in first:
        return "mmc4"
    if "chosen" in first and "rejected" in first:
        return "preference_json"
    if "messages" in first or ("conversations" in first and "images" in first):
        return "sharegpt_json"
    if "texts" in first and "images" in first:
        return "obelics"
    return "qwen_vl_json" if "</img>" in str(first.get("conversations")) else "llava_json"


def image_folder(path: str) -> str:
    """Returns where the images of a JSON file are when nothing says so: `images/` beside it, or its own folder."""
    folder = os.path.dirname(path) or "."
    beside = os.path.join(folder, "images")
    return beside if os.path.isdir(beside) else folder
