"""Conversations in LLaVA's JSON or JSONL."""

from typing import Any, Literal

from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.sources.conversation import turns_of
from data_pipelines.sources.json_files import JsonFiles, JsonFilesConfig
from data_pipelines.storage import Storage


class LlavaJsonConfig(JsonFilesConfig):
    """A JSON array or JSONL file of `{id, image, conversations: [{from, value}]}`; images in a folder or in tars."""

    kind: Literal["llava_json"] = "llava_json"

    def open(self, storage: Storage) -> "LlavaJsonSource":
        """Indexes the files and the image tars; see `JsonFiles`."""
        return LlavaJsonSource(self, storage)


class LlavaJsonSource(JsonFiles):
    """Records of conversations."""

    def record(self, value: dict[str, Any], key: str) -> Record | Skip:
        images = self.images(value.get("image"), key)
        if isinstance(images, Skip):
            return images
        turns = turns_of(value.get("conversations"), images, key)
        return turns if isinstance(turns, Skip) else Record(key, turns)
