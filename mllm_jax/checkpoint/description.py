"""The part of a checkpoint that says what it is: the run file and the tokenizer's files, as JSON."""

import base64
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def make_description(
    run: Json,
    stage: str,
    trainable: tuple[str, ...],
    adapters: Json,
    files: Mapping[str, bytes],
    virtual_tokens: Json | None = None,
) -> Json:
    """What is saved with every step.

    Args:
        run: the resolved run file.
        stage: name of the stage.
        trainable: its path patterns.
        adapters: path of a linear map -> the config of its low-rank adapter.
        files: of the tokenizers, name -> content.
        virtual_tokens: the config of what is learned before every segment; None: nothing is.
    """
    return {
        "run": run,
        "stage": stage,
        "trainable": list(trainable),
        "adapters": adapters,
        "virtual_tokens": virtual_tokens,
        "tokenizer": {name: _encode(content) for name, content in files.items()},
    }


INSTRUCTION_TOKENIZER = "instruction_tokenizer"
"""The folder of the tokenizer of instructions, among the files of the decoder's tokenizer."""


def with_instruction_tokenizer(files: Mapping[str, bytes], instruction: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of the decoder's tokenizer and, in a folder of their own, those of the instructions' tokenizer."""
    return {**files, **{f"{INSTRUCTION_TOKENIZER}/{name}": content for name, content in instruction.items()}}


def tokenizer_files(description: Json, folder: str = "") -> dict[str, bytes]:
    """The files of the decoder's tokenizer from a description, or those in a folder among them."""
    named = {name.rpartition("/"): entry for name, entry in description["tokenizer"].items()}
    return {name: _decode(entry) for (parent, _, name), entry in named.items() if parent == folder}


def _encode(content: bytes) -> Json:
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def _decode(entry: Json) -> bytes:
    return entry["text"].encode("utf-8") if "text" in entry else base64.b64decode(entry["base64"])
