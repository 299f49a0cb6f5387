"""Messages of any spelling in the one that `turns_of` reads: `{"from", "value"}`, images as marks in the text."""

from typing import Any

from data_pipelines.sources.conversation import IMAGE_MARK

Message = dict[str, Any]
"""`{"from", "value"}`; what they hold is left to `turns_of` to judge."""

IMAGE_PARTS = ("image", "image_url")
"""Types of the parts of a content that are images."""

_NAMES = ("image", "image_url", "path", "url")
"""Keys under which such a part may name its image, the first that is there."""


def messages_of(said: Any, role: str) -> list[Message]:
    """Returns messages `{role, content}` or `{from, value}`, or a text that someone says, as messages.

    Args:
        said: contents are texts, or lists of parts `{type: text, text}` and `{type: image}`.
        role: of whom a text is, and a message that does not say whose it is.
    """
    if isinstance(said, str):
        return [{"from": role, "value": said}]
    messages = said if isinstance(said, list) else [said] if isinstance(said, dict) else []
    return [
        {"from": each.get("from", each.get("role", role)), "value": _text(each.get("value", each.get("content")))}
        if isinstance(each, dict)
        else {"from": None, "value": each}
        for each in messages
    ]


def named_images(said: Any) -> list[str]:
    """Returns the names of the images that parts of messages name, in order: `{type: image, image: NAME}`, or
    `{type: image_url, image_url: {url: NAME}}`."""
    messages = said if isinstance(said, list) else []
    contents = [each.get("value", each.get("content")) for each in messages if isinstance(each, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    named = [_name(part) for part in parts if part.get("type") in IMAGE_PARTS]
    return [name for name in named if isinstance(name, str)]


def with_marks(messages: list[Message], images: int) -> list[Message]:
    """Returns the messages with the images before the first question, if nothing says where they stand."""
    marked = any(IMAGE_MARK in str(message["value"]) for message in messages)
    users = [index for index, message in enumerate(messages) if message["from"] != "system"]
    if not images or marked or not users or not isinstance(messages[users[0]]["value"], str):
        return messages
    first = messages[users[0]]
    placed = {**first, "value": f"{IMAGE_MARK}\n" * images + first["value"]}
    return [*messages[: users[0]], placed, *messages[users[0] + 1 :]]


def _text(content: Any) -> Any:
    """A list of parts as one text with marks for images; anything else as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [IMAGE_MARK if part.get("type") in IMAGE_PARTS else part.get("text") for part in content]
    return "\n".join(texts) if all(isinstance(text, str) for text in texts) else content  # type: ignore[arg-type]


def _name(part: dict[str, Any]) -> Any:
    named = next((part[key] for key in _NAMES if part.get(key)), None)
    return named.get("url") if isinstance(named, dict) else named
