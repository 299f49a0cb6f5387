"""Where the index of a shard is kept, and whether what is there may be believed.

An index stands beside its shard as `NAME.tar.index`, or in a cache folder. It names the shard's size and time of change
(of a remote shard its etag): one that names others is stale, one whose checksum is wrong is damaged, and neither is
used.
"""

import hashlib
import logging
import mmap
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from data_pipelines.atomic_file import replace_file
from data_pipelines.sources.tar_index import DamagedIndexError, TarIndex, about
from data_pipelines.sources.tar_samples import samples
from data_pipelines.storage import Storage, is_local

LOGGER = logging.getLogger("data_pipelines")

IndexUse = Literal["auto", "never", "require"]

_OPEN_INDEXES = 1024
_LISTED = 5


class IndexUnusableError(ValueError):
    """An index that is missing, damaged or stale."""


class IndexMissingError(IndexUnusableError):
    """No index is there."""


def index_path(shard: str, cache: str | None) -> str:
    """Returns the path of a shard's index: beside it, or in a folder under a name that its whole path gives.

    Raises:
        ValueError: the shard is remote and no folder is given.
    """
    local = is_local(shard)
    whole = os.path.abspath(shard.removeprefix("file://")) if local else shard
    if cache is None and not local:
        raise ValueError(f"{shard} is remote: its index is kept in a folder here. Give one (--cache DIR).")
    if cache is None:
        return f"{whole}.index"
    told_apart = hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return os.path.join(cache, f"{os.path.basename(whole)}.{told_apart}.index")


def make_index(shard: str, cache: str | None, storage: Storage) -> TarIndex:
    """Walks a shard and writes its index, whole or not at all.

    Raises:
        OSError: the shard cannot be read or changed meanwhile, or the place of the index cannot be written.
    """
    target, version = index_path(shard, cache), storage.version(shard)
    index = TarIndex.of(samples(storage.reader(shard), version["size"]))
    if storage.version(shard) != version:
        raise OSError(f"{shard} changed while it was being indexed; do it again once its writer has ended")
    try:
        if cache is not None:
            os.makedirs(cache, exist_ok=True)
        replace_file(target, [index.to_bytes(version)])
    except OSError as error:
        raise OSError(
            f"the index {target} cannot be written ({error.strerror or error}). Give a folder that can be written "
            "(--cache DIR), and name it in the source (index_cache: DIR)."
        ) from error
    return index


def load_index(shard: str, cache: str | None, storage: Storage) -> TarIndex:
    """Returns the index of a shard that was made before.

    Raises:
        IndexUnusableError: it is missing, damaged or stale.
        OSError: the shard or the index cannot be read.
    """
    path = index_path(shard, cache)
    try:
        with open(path, "rb") as file:
            # An empty file cannot be mapped.
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
        index, made_of = TarIndex.from_bytes(data)
    except FileNotFoundError:
        raise IndexMissingError(f"there is no index {path}") from None
    except DamagedIndexError as error:
        raise IndexUnusableError(f"the index {path} is damaged: {error}") from None
    _check_version(path, shard, made_of, storage)
    if isinstance(data, mmap.mmap):
        # The checksum touched every page; from here on a few are needed.
        data.madvise(mmap.MADV_DONTNEED)
    return index


def check_index(shard: str, cache: str | None, storage: Storage) -> None:
    """Looks whether there is an index of a shard that is not stale, without reading all of it; raises as `load_index`.

    The version of a remote shard, a request each, is not asked for.
    """
    path = index_path(shard, cache)
    try:
        with open(path, "rb") as file:
            made_of = about(file)
    except FileNotFoundError:
        raise IndexMissingError(f"there is no index {path}") from None
    except DamagedIndexError as error:
        raise IndexUnusableError(f"the index {path} is damaged: {error}") from None
    if is_local(shard):
        _check_version(path, shard, made_of, storage)


def _check_version(path: str, shard: str, made_of: dict[str, Any], storage: Storage) -> None:
    now = storage.version(shard)
    if made_of != now:
        changed = [name for name in now | made_of if made_of.get(name) != now.get(name)]
        changes = ", ".join(f"{name} was {made_of.get(name)}, is {now.get(name)}" for name in changed)
        raise IndexUnusableError(f"the index {path} is stale: the shard changed since ({changes})")


class ShardIndexes:
    """The indexes of a list of shards, opened as they are asked for."""

    def __init__(self, shards: Sequence[str], use: IndexUse, cache: str | None, storage: Storage) -> None:
        """
        Raises:
            IndexUnusableError: indexes are required, and some are not there or stale.
        """
        self._shards = shards
        self._use = use
        self._cache = cache
        self._storage = storage
        self._told = False
        self.of = lru_cache(maxsize=_OPEN_INDEXES)(self._open)
        """The index of a shard by its number; None: it has none that may be used."""
        if use == "require":
            self._require()

    def _open(self, number: int) -> TarIndex | None:
        shard = self._shards[number]
        if self._use == "never" or (self._cache is None and not is_local(shard)):
            return None
        try:
            return load_index(shard, self._cache, self._storage)
        except IndexUnusableError as error:
            if self._use == "require":
                raise
            if not isinstance(error, IndexMissingError) and not self._told:
                self._told = True
                LOGGER.warning("%s; such shards are walked without an index. Run `mllm data index` again.", error)
            return None

    def _require(self) -> None:
        faults = []
        for shard in self._shards:
            try:
                check_index(shard, self._cache, self._storage)
            except IndexUnusableError as error:
                faults.append(str(error))
        if faults:
            shown = "; ".join(faults[:_LISTED]) + (" ..." if len(faults) > _LISTED else "")
            raise IndexUnusableError(
                f"index: require is set, but {len(faults)} of {len(self._shards)} shards have no index that can be "
                f"used: {shown}. Make them with `mllm data index`."
            )
