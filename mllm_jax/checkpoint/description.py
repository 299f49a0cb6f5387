"""The part of a checkpoint that says what it is: the run file and the tokenizer's files, as JSON."""

import base64
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def make_description(
    run: Json, stage: str, trainable: tuple[str, ...], adapters: Json, files: Mapping[str, bytes]
) -> Json:
    """What is saved with every step.

    Args:
        run: the resolved run file.
        stage: name of the stage.
        trainable: its path patterns.
        adapters: path of a linear map -> the config of its low-rank adapter.
        files: of the tokenizer, name -> content.
    """
    return {
        "run": run,
        "stage": stage,
        "trainable": list(trainable),
        "adapters": adapters,
        "tokenizer": {name: _encode(content) for name, content in files.items()},
    }


def tokenizer_files(description: Json) -> dict[str, bytes]:
    """The tokenizer's files from a description."""
    return {name: _decode(entry) for name, entry in description["tokenizer"].items()}


def _encode(content: bytes) -> Json:
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def _decode(entry: Json) -> bytes:
    return entry["text"].encode("utf-8") if "text" in entry else base64.b64decode(entry["base64"])
