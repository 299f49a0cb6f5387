"""Conversations in Qwen-VL's JSON: images are named where they stand in the text."""

import re
from typing import Any, Literal

from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.sources.conversation import IMAGE_MARK, shown, turns_of
from data_pipelines.sources.json_files import JsonFiles, JsonFilesConfig
from data_pipelines.sources.messages import messages_of
from data_pipelines.storage import Storage

_PICTURE = re.compile(r"(?:Picture \d+:\s*)?<img>(.*?)</img>", re.DOTALL)
_TAG = re.compile("</?img>")


class QwenVlJsonConfig(JsonFilesConfig):
    """A JSON array or JSONL file of `{conversations: [{from: "user" | "assistant", value}]}`.

    An image is `Picture 1: <img>NAME</img>` in a value; its number is dropped, its name is a path below the folder or
    in the tars.
    """

    kind: Literal["qwen_vl_json"] = "qwen_vl_json"

    def open(self, storage: Storage) -> "QwenVlJsonSource":
        """Indexes the files and the image tars; see `JsonFiles`."""
        return QwenVlJsonSource(self, storage)


class QwenVlJsonSource(JsonFiles):
    """Records of conversations."""

    def record(self, value: dict[str, Any], key: str) -> Record | Skip:
        names: list[str] = []

        def marked(text: Any) -> Any:
            if not isinstance(text, str):
                return text
            names.extend(name.strip() for name in _PICTURE.findall(text))
            return _PICTURE.sub(IMAGE_MARK, text)

        said = messages_of(value.get("conversations"), "user")
        if any(IMAGE_MARK in str(message["value"]) for message in said):
            return Skip("image_count", key, f"{IMAGE_MARK} stands in the text, where images are <img>NAME</img>")
        messages = [{**message, "value": marked(message["value"])} for message in said]
        left = next((str(each["value"]) for each in messages if _TAG.search(str(each["value"]))), None)
        if left is not None:
            return Skip("image_count", key, f"<img> and </img> do not come in pairs: {shown(left)}")
        images = self.images(names, key)
        turns = images if isinstance(images, Skip) else turns_of(messages, images, key)
        return turns if isinstance(turns, Skip) else Record(key, turns)
