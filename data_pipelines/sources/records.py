"""Records of any kind in tar shards as `mllm data build` writes them."""

from typing import Any, Literal

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, Record
from data_pipelines.sources.json_index import RECORD_LIMIT
from data_pipelines.sources.record_json import JSON, record_of
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.sources.tar_samples import TarSample
from data_pipelines.sources.tar_walk import UNTOLD, AtHand, TarShardsConfig, TarWalk
from data_pipelines.storage import Storage


class RecordsConfig(TarShardsConfig):
    """Tar shards that `mllm data build` wrote: conversations with any number of images, preference pairs and all."""

    kind: Literal["records"] = "records"

    def open(self, storage: Storage) -> "RecordsSource":
        """Lists the shards.

        Raises:
            FileNotFoundError: a pattern names no shard.
            IndexUnusableError: an index is required and is not there.
        """
        return RecordsSource(self, storage)


class RecordsSource(TarWalk):
    """Reads a record's JSON; images are only pointed at."""

    def __init__(self, config: RecordsConfig, storage: Storage) -> None:
        super().__init__(expand(config.shards), storage, config.index, config.index_cache)
        self._config = config

    def fingerprint(self) -> dict[str, Any]:
        return self._config.model_dump(mode="json", exclude=set(UNTOLD)) | identity(self.shards, self._storage)

    def content(self, path: str, sample: TarSample, at_hand: AtHand) -> TarSample | Skip:
        key = f"{path}:{sample.key}"
        if sample.refusal is not None:
            return Skip(sample.refusal[0], key, sample.refusal[1])
        if JSON not in sample.members:
            return Skip("missing_record", key, f"no member .{JSON}; the sample holds only {', '.join(sample.members)}")
        size = sample.members[JSON][1]
        return Skip("record_too_large", key, f"{size} bytes") if size > RECORD_LIMIT else sample

    def record(self, path: str, content: TarSample, entry: Entry) -> Record | Skip:
        places = {name: ByteRange(path, *place) for name, place in content.members.items()}
        return record_of(self._storage.read_range(places.pop(JSON)), f"{path}:{content.key}", places)
