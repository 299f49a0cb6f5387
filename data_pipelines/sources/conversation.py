"""LLaVA conversations become turns: `<image>` marks where an image stands."""

from collections.abc import Sequence
from typing import Any

from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart, Part, Role, TextPart, Turn
from data_pipelines.sources.webdataset import encodable

IMAGE_MARK = "<image>"

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def turns_of(conversation: Any, images: Sequence[ImagePart], key: str) -> tuple[Turn, ...] | Skip:
    """Returns the turns of `[{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": ...}]`.

    Images take the places of the marks in order; white space around a mark is dropped, as LLaVA does. Assistants'
    turns are learned. Users and assistants must take turns, a system turn may come first.
    """
    if not isinstance(conversation, list) or not conversation:
        return Skip("not_a_conversation", key, f"conversations is {shown(conversation)}")
    turns: list[Turn] = []
    placed = 0
    for number, said in enumerate(conversation):
        if not isinstance(said, dict) or not isinstance(said.get("value"), str):
            return Skip("not_text", key, f"turn {number} is {shown(said)}")
        role = ROLES.get(said["from"]) if isinstance(said.get("from"), str) else None
        if role is None:
            return Skip("unknown_role", key, f"turn {number} is from {shown(said.get('from'))}")
        pieces = said["value"].split(IMAGE_MARK)
        fault = _fault(role, turns, pieces)
        if fault is not None:
            return Skip(fault, key, f"turn {number} ({role})")
        parts: list[Part] = []
        for index, piece in enumerate(pieces):
            if index:
                parts.extend(images[placed : placed + 1])
                placed += 1
            if text := piece.strip():
                parts.append(TextPart(text))
        turns.append(Turn(role, tuple(parts), learn=role == "assistant"))
    if placed != len(images):
        return Skip("image_count", key, f"{placed} {IMAGE_MARK} marks for {len(images)} images")
    if not any(turn.learn for turn in turns):
        return Skip("no_answer", key, "no turn of an assistant")
    return tuple(turns)


def _fault(role: Role, before: list[Turn], pieces: list[str]) -> str | None:
    """Returns the cause why a turn may not stand here, or None."""
    last = before[-1].role if before else "system"
    if role == "system":
        in_order = not before
    elif role == "user":
        in_order = last != "user"
    else:
        in_order = last == "user"
    if not in_order:
        return "turn_order"
    if role != "user" and len(pieces) > 1:
        return "image_in_answer"
    if len(pieces) == 1 and not pieces[0].strip():
        return "empty_turn"
    return None if all(encodable(piece) for piece in pieces) else "not_utf8"


def shown(value: Any) -> str:
    """Returns a value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
