"""Blends of LLaVA JSON files, as LLaVA-NeXT and OneVision write them: a YAML file names each and how much of it."""

import os
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import ErrorDetails

from data_pipelines.config_class import Config
from data_pipelines.permutation import seed_of, shuffled
from data_pipelines.sources.conversation import shown
from data_pipelines.sources.json_files import JsonFilesConfig
from data_pipelines.sources.llava_json import LlavaJsonSource
from data_pipelines.sources.shard_list import expand
from data_pipelines.storage import Storage
from data_pipelines.suggestion import suggest

BLENDS = (".yaml", ".yml")
"""How a blend's name ends."""

_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")
_NAMES = ("all", "first", "end", "random")


class BlendedFile(Config):
    """One entry of `datasets`."""

    json_path: str
    """A JSON array or JSONL file, or a brace range or glob of several; relative to the configured folder."""
    sampling_strategy: str = "all"
    """`all`, or `first`, `end` or `random` with a number of records or a percentage of each file, rounded up."""

    @field_validator("sampling_strategy")
    @classmethod
    def _known(cls, strategy: str) -> str:
        found = _STRATEGY.fullmatch(strategy)
        if strategy == "all" or (found and not (found[3] and int(found[2]) > 100)):
            return strategy
        name = strategy.partition(":")[0]
        near = "" if name in _NAMES else suggest(name, _NAMES)
        known = "first, end or random with a number or a percentage up to 100, as first:1000 or random:10%"
        raise ValueError(f"found {strategy!r}, expected all, or {known}.{near}")

    def chosen(self, count: int, seed: int) -> range | np.ndarray:
        """Returns the numbers of the records taken of a file of `count`, ascending; of random ones i64[n]."""
        found = _STRATEGY.fullmatch(self.sampling_strategy)
        if found is None:
            return range(count)
        asked = int(found[2])
        size = min(count, -(-asked * count // 100) if found[3] else asked)
        if found[1] == "random":
            return np.sort(shuffled(count, seed)[:size])
        return range(size) if found[1] == "first" else range(count - size, count)


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
    """Returns the files that a YAML file names, in order; raises as `LlavaBlendConfig.open`, of every fault at once."""
    below, entries = os.path.dirname(path) if folder is None else folder, _entries(path)
    parts: list[_Part] = []
    missing: list[str] = []
    for number, each in enumerate(entries):
        try:
            parts += [_Part(found, each) for found in expand(os.path.join(below, each.json_path), "files")]
        except FileNotFoundError as error:
            missing.append(f"datasets.{number}.json_path: {error}")
    if missing:
        relative = f"A json_path is relative to {below or 'the working directory'}; `folder` says otherwise."
        raise FileNotFoundError(f"{path}: {'; '.join(missing)}. {relative}")
    if not parts:
        raise ValueError(f"{path}: datasets names no file")
    return parts


def _entries(path: str) -> list[BlendedFile]:
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
        return TypeAdapter(list[BlendedFile]).validate_python(said["datasets"])
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(map(_sentence, error.errors(include_url=False)))) from None


def _sentence(fault: ErrorDetails) -> str:
    place = ".".join(("datasets", *map(str, fault["loc"])))
    if fault["type"] == "extra_forbidden":
        keys = BlendedFile.model_fields
        return f"{place}: unknown key.{suggest(str(fault['loc'][-1]), keys)} Keys here: {', '.join(keys)}."
    if fault["type"] == "missing":
        return f"{place}: this key is needed"
    if fault["type"] == "value_error":
        return f"{place}: {fault['ctx']['error']}"
    return f"{place}: found {shown(fault['input'])}; {fault['msg']}"


class LlavaBlendSource(LlavaJsonSource):
    """Records of conversations of several files; places count the records that were chosen."""

    def __init__(self, config: LlavaBlendConfig, storage: Storage) -> None:
        parts = read_blend(config.files, config.folder)
        super().__init__(config, storage, tuple(part.path for part in parts))
        self._strategies = [part.entry.sampling_strategy for part in parts]
        # Where a file breaks off is told whatever part of it is taken: its rest is lost to every strategy.
        self._broken = [len(spans) > 0 and int(spans[-1, 1]) < 0 for spans in self._spans]
        self._chosen = [
            part.entry.chosen(len(spans) - broken, seed_of(config.seed, "blend", number))
            for number, (part, spans, broken) in enumerate(zip(parts, self._spans, self._broken, strict=True))
        ]
        self._seed = config.seed

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"strategies": self._strategies, "seed": self._seed}

    def count(self, shard: int) -> int:
        return len(self._chosen[shard]) + self._broken[shard]

    def number(self, shard: int, place: int) -> int:
        chosen = self._chosen[shard]
        return int(chosen[place]) if place < len(chosen) else len(self._spans[shard]) - 1
