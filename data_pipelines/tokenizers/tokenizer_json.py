"""Reading and changing `tokenizer.json`: special tokens, and text engines that match none of them."""

import copy
from collections.abc import Iterable
from typing import Any

UNREACHABLE = " "
"""Put before a name it can no longer be read from text: every pre-tokenizer turns spaces into another character."""


def canonical(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without truncation, padding and automatic start or end tokens: templates write those."""
    return tokenizer | {"truncation": None, "padding": None, "post_processor": None}


def first_token_added(tokenizer: dict[str, Any]) -> str | None:
    """The token that the file's own post-processor puts before every text, or None."""
    steps = [tokenizer.get("post_processor") or {}]
    while steps:
        step = steps.pop(0)
        steps.extend(step.get("processors", ()))
        if step.get("type") == "TemplateProcessing" and step.get("single"):
            first = step["single"][0]
            return first["SpecialToken"]["id"] if "SpecialToken" in first else None
    return None


def with_special_tokens(tokenizer: dict[str, Any], tokens: Iterable[str]) -> dict[str, Any]:
    """Makes each token special: one already in the vocabulary keeps its id, a new one is appended after the last id."""
    added = [dict(entry) for entry in tokenizer.get("added_tokens", ())]
    vocabulary = model_vocabulary(tokenizer)
    for token in tokens:
        entry = next((entry for entry in added if entry["content"] == token), None)
        if entry is not None:
            entry["special"] = True
            continue
        following = max([*vocabulary.values(), *(entry["id"] for entry in added)], default=-1) + 1
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added.append({"id": vocabulary.get(token, following), "content": token} | flags)
    return tokenizer | {"added_tokens": added}


def model_vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Token to id of the model itself, without added tokens."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: index for index, (piece, _) in enumerate(vocabulary)}


def adds_prefix_space(tokenizer: dict[str, Any]) -> bool:
    """Whether a space is put before the text only where a sequence starts (Metaspace with the scheme "first")."""
    return any(step.get("prepend_scheme") == "first" for step in _pre_tokenizers(tokenizer))


def text_only(tokenizer: dict[str, Any], *, start: bool) -> dict[str, Any]:
    """The tokenizer in which no text can reach a special token.

    Ids stay as they are: a special token is renamed, in the model's vocabulary too, to a name that no text can spell.

    Args:
        start: whether the text begins a sequence, where some tokenizers put a space before it.
    """
    result = copy.deepcopy(tokenizer)
    renamed = {entry["content"] for entry in result["added_tokens"] if entry["special"]}
    for entry in result["added_tokens"]:
        entry["content"] = _renamed(entry["content"], renamed)
    model = result["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_renamed(piece, renamed): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[_renamed(piece, renamed), score] for piece, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = _renamed(model["unk_token"], renamed)
    if "merges" in model:
        merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [[left, right] for left, right in merges if renamed.isdisjoint((left, right, left + right))]
    if not start:
        for step in _pre_tokenizers(result):
            if step.get("prepend_scheme") == "first":
                step["prepend_scheme"] = "never"
    return result


def _renamed(name: str, renamed: set[str]) -> str:
    return UNREACHABLE + name if name in renamed else name


def _pre_tokenizers(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    step = tokenizer.get("pre_tokenizer")
    if step is None:
        return []
    return step["pretokenizers"] if step.get("type") == "Sequence" else [step]
