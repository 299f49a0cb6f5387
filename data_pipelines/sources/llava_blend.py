"""Blends of LLaVA JSON files, as LLaVA-NeXT and OneVision write them: a YAML file names each and how much of it."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from data_pipelines.config_class import Config
from data_pipelines.permutation import seed_of, shuffled
from data_pipelines.sources.json_files import JsonFilesConfig
from data_pipelines.sources.llava_json import LlavaJsonSource
from data_pipelines.sources.shard_list import expand
from data_pipelines.storage import Storage

_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")
_SAID = "all, or first, end or random with a number or a percentage, as first:1000 or random:10%"


class BlendedFile(Config):
    """One entry of `datasets`."""

    json_path: str
    """A JSON array or JSONL file, or a brace range or glob of several; relative to the configured folder."""
    sampling_strategy: str = "all"
    """`all`, or `first`, `end` or `random` with a number of records or a percentage of each file, rounded up."""

    @field_validator("sampling_strategy")
    @classmethod
    def _known(cls, strategy: str) -> str:
        if strategy != "all" and not _STRATEGY.fullmatch(strategy):
            raise ValueError(f"found {strategy!r}, expected {_SAID}")
        return strategy

    def chosen(self, count: int, seed: int) -> np.ndarray:
        """Returns i64[n], the numbers of the records taken of a file of `count`, ascending."""
        found = _STRATEGY.fullmatch(self.sampling_strategy)
        if found is None:
            return np.arange(count)
        asked = int(found[2])
        size = min(count, math.ceil(asked * count / 100) if found[3] else asked)
        if found[1] == "random":
            return np.sort(shuffled(count, seed)[:size])
        return np.arange(size) if found[1] == "first" else np.arange(count - size, count)


class LlavaBlendConfig(JsonFilesConfig):
    """A YAML file of `datasets: [{json_path, sampling_strategy}]`, each of LLaVA's JSON; images as in one such file."""

    kind: Literal["llava_blend"] = "llava_blend"
    files: str
    """The YAML file."""
    folder: str | None = None
    """What relative `json_path`s are below; null: the YAML file's folder."""
    seed: int = Field(default=0, ge=0)
    """Of `random:` strategies; the same records on any number of hosts, and in every epoch."""

    def open(self, storage: Storage) -> "LlavaBlendSource":
        """Reads the YAML file and indexes the files that it names.

        Raises:
            ValueError: the YAML file says something else.
            FileNotFoundError: a file that it names, or the image folder, is not there.
        """
        return LlavaBlendSource(self, storage)


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of a blend."""

    path: str
    entry: BlendedFile


def read_blend(path: str, folder: str | None) -> list[_Part]:
    """Returns the files that a YAML file names, in order; raises as `LlavaBlendConfig.open`."""
    try:
        with open(path, encoding="utf-8") as file:
            said = yaml.safe_load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"the blend {path} is not there") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(said, dict) or set(said) != {"datasets"}:
        found = ", ".join(map(str, said)) if isinstance(said, dict) else type(said).__name__
        raise ValueError(f"{path}: found {found}, expected one key, datasets")
    try:
        entries = TypeAdapter(list[BlendedFile]).validate_python(said["datasets"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ValueError(f"{path}: datasets.{place}: {first['msg'].removeprefix('Value error, ')}") from None
    below = os.path.dirname(path) if folder is None else folder
    parts = [_Part(found, each) for each in entries for found in expand(os.path.join(below, each.json_path), "files")]
    if not parts:
        raise ValueError(f"{path}: datasets names no file")
    return parts


class LlavaBlendSource(LlavaJsonSource):
    """Records of conversations of several files; places count the records that were chosen."""

    def __init__(self, config: LlavaBlendConfig, storage: Storage) -> None:
        parts = read_blend(config.files, config.folder)
        super().__init__(config, storage, tuple(part.path for part in parts))
        self._strategies = [part.entry.sampling_strategy for part in parts]
        self._chosen = [
            part.entry.chosen(len(spans), seed_of(config.seed, "blend", number))
            for number, (part, spans) in enumerate(zip(parts, self._spans, strict=True))
        ]
        self._seed = config.seed

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"strategies": self._strategies, "seed": self._seed}

    def count(self, shard: int) -> int:
        return len(self._chosen[shard])

    def number(self, shard: int, place: int) -> int:
        return int(self._chosen[shard][place])
