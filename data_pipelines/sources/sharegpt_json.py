"""Multimodal conversations in ShareGPT's and OpenAI's spellings."""

from typing import Any, Literal

from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.sources.conversation import turns_of
from data_pipelines.sources.json_files import JsonFiles, JsonFilesConfig
from data_pipelines.sources.messages import messages_of, named_images, with_marks
from data_pipelines.storage import Storage

CONVERSATIONS = ("messages", "conversations")
"""Keys under which the conversation stands, the first that is there."""


class ShareGptJsonConfig(JsonFilesConfig):
    """A JSON array or JSONL file of `{messages: [{role, content}], images: [NAME], system}`.

    `conversations` of `{from, value}` may stand in the place of `messages`, and `image` in that of `images`. Contents
    are texts with `<image>` marks, or lists of parts `{type: text, text}` and `{type: image}`, which may name their
    image (`image: NAME`, `path: NAME`, `url: NAME`, or `image_url: {url: NAME}`) where the conversation lists none.
    Images that nothing marks stand before the first question. A name is a path below the folder or in the tars; no URL
    is ever fetched.
    """

    kind: Literal["sharegpt_json"] = "sharegpt_json"

    def open(self, storage: Storage) -> "ShareGptJsonSource":
        """Indexes the files and the image tars; see `JsonFiles`."""
        return ShareGptJsonSource(self, storage)


class ShareGptJsonSource(JsonFiles):
    """Records of conversations."""

    def record(self, value: dict[str, Any], key: str) -> Record | Skip:
        said = next((value[name] for name in CONVERSATIONS if value.get(name)), None)
        listed = value.get("images") if value.get("images") is not None else value.get("image")
        named = named_images(said) if listed in (None, []) else listed
        images = self.images(named, key)
        if isinstance(images, Skip):
            return images
        before = messages_of(value["system"], "system") if isinstance(value.get("system"), str) else []
        turns = turns_of(with_marks([*before, *messages_of(said, "user")], len(images)), images, key)
        return turns if isinstance(turns, Skip) else Record(key, turns)
