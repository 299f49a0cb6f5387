"""Makes the indexes of many shards: those that are there and still true are kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipelines.quota import Skip
from data_pipelines.sources.shard_list import expand
from data_pipelines.sources.tar_index_files import (
    IndexMissingError,
    IndexUnusableError,
    index_path,
    load_index,
    make_index,
)
from data_pipelines.storage import Storage
from data_pipelines.threads import in_threads


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What is known of one shard once it has an index."""

    path: str
    samples: int
    lost: Skip | None
    """Where the tar breaks off, if it does."""
    made: bool
    """Whether the index was made now."""
    replaced: str | None = None
    """What was wrong with the index that was there before."""


def index_shards(
    paths: Sequence[str], cache: str | None = None, threads: int = 2, storage: Storage | None = None
) -> Iterator[IndexReport]:
    """Indexes shards and yields a report of each, in their order. Several processes may do so at once.

    Args:
        paths: globs and brace ranges are expanded.
        cache: folder of the indexes; None: each stands beside its shard.
        threads: that walk headers, each one shard at a time.
        storage: what reads them; None: one of the defaults.

    Raises:
        FileNotFoundError: a pattern names no shard.
        ValueError: a shard is remote and there is no cache.
        OSError: a shard cannot be read, or its index not be written.
    """
    reading = storage or Storage()
    shards = expand(tuple(paths))
    for shard in shards:
        index_path(shard, cache)
    return in_threads(lambda shard: index_shard(shard, cache, reading), shards, threads)


def index_shard(shard: str, cache: str | None, storage: Storage) -> IndexReport:
    """Makes the index of a shard if there is none that can be used; arguments and errors as for `index_shards`."""
    replaced, made = None, False
    try:
        index = load_index(shard, cache, storage)
    except IndexUnusableError as error:
        replaced = None if isinstance(error, IndexMissingError) else str(error)
        made = True
        index = make_index(shard, cache, storage)
    broken = index.broken
    lost = Skip(broken.cause, f"{shard}@{broken.begin}", broken.detail) if broken is not None else None
    return IndexReport(shard, len(index), lost, made, replaced)
