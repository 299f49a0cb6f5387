"""What is built, where, and how a folder tells one build from another."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from data_pipelines.atomic_file import replace_file, unfinished_files
from data_pipelines.building.manifest import MANIFEST, read_json
from data_pipelines.config_class import Config
from data_pipelines.sources.choice import SourceConfig
from data_pipelines.sources.source import Source
from data_pipelines.storage import StorageConfig

WORK = ".build"
"""Folder of a build that has not ended."""
_DESCRIPTION = "job.json"
_FORMAT = 1


class BuildConfig(Config):
    """One build."""

    source: SourceConfig
    output: str
    """Folder of the shards."""
    samples_per_shard: int = Field(default=1000, gt=0)
    """Records of every shard but the last."""
    storage: StorageConfig = StorageConfig()
    """How the source is read, which changes nothing of what is written."""

    @property
    def work(self) -> Path:
        return Path(self.output) / WORK


def described(config: BuildConfig, source: Source) -> dict[str, Any]:
    """Returns what the bytes of a build depend on, as JSON."""
    told = config.source.model_dump(mode="json", exclude={"index", "index_cache"})
    found = {"format": _FORMAT, "samples_per_shard": config.samples_per_shard, "source": told}
    copied: dict[str, Any] = json.loads(json.dumps(found | {"fingerprint": source.fingerprint()}))
    return copied


@contextmanager
def claimed(config: BuildConfig, source: Source) -> Iterator[dict[str, Any] | None]:
    """Makes the folder one of this build, alone in it until the end; gives the manifest if all has been built already.

    Raises:
        ValueError: the folder holds another build or other shards, or another process builds in it now.
    """
    output, job = Path(config.output), described(config, source)
    manifest = read_json(output / MANIFEST)
    if manifest is not None:
        _compare(output, manifest["job"], job)
        yield manifest
        return
    begun = read_json(config.work / _DESCRIPTION)
    if begun is not None:
        _compare(output, begun, job)
    elif output.is_dir() and any(each.name != WORK for each in output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no build to go on with; give a folder of its own")
    config.work.mkdir(parents=True, exist_ok=True)
    with _locked(config.work / "lock", output):
        replace_file(config.work / _DESCRIPTION, [json.dumps(job).encode()])
        for left in unfinished_files(output):
            left.unlink()
        yield None


def _compare(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [key for key in before | now if before.get(key) != now.get(key)]
    if changed:
        told = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
        raise ValueError(f"{output} holds another build: {told}. Give another folder, or remove this one.")


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    """Holds a lock that the system lets go of however the process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is building in {output} now") from None
        file.write(str(os.getpid()))
        yield
