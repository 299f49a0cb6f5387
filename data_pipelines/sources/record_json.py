"""Records as the members of a tar's sample, and back: `KEY.json`, and each image as `KEY.0.jpg`, `KEY.1.png`, ...

The JSON is the `Record` as it is declared, without what has its default value; the path of an image is the name of its
member without the key.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache

from pydantic import TypeAdapter, ValidationError

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, ImageSource, Part, Record, Turn

JSON = "json"
"""Extension of the member that is the record."""

_BEGINNINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}
_UNKNOWN = "image"


def members_of(record: Record, read: Callable[[ImageSource], bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields (extension, bytes) of the members that hold a record: the JSON, then its images, each once.

    Args:
        read: reads an image.
    """
    images: dict[ImageSource, tuple[str, bytes]] = {}
    for turn in _turns(record):
        for part in turn.parts:
            if isinstance(part, ImagePart) and part.source not in images:
                data = read(part.source)
                images[part.source] = f"{len(images)}.{_extension(data)}", data
    named = with_images(record, lambda source: ByteRange(images[source][0]))
    yield JSON, _adapter().dump_json(named, exclude_defaults=True)
    yield from images.values()


def record_of(data: bytes, key: str, images: Mapping[str, ByteRange]) -> Record | Skip:
    """Returns the record that some JSON says, or why it is none.

    Args:
        data: what `members_of` gave as JSON.
        key: of the record from here on.
        images: where the images are, by the extension of their member.
    """
    try:
        named = _adapter().validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        cause = "bad_json" if first["type"] == "json_invalid" else "bad_record"
        return Skip(cause, key, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if not named.turns:
        return Skip("bad_record", key, "no turns")
    if named.reference is not None and not math.isfinite(named.reference.chosen + named.reference.rejected):
        return Skip("bad_reference", key, f"what a reference model said is {named.reference}")
    places: dict[ImageSource, ByteRange] = {}
    for turn in _turns(named):
        for part in turn.parts:
            if isinstance(part, ImagePart):
                found = images.get(part.source.path) if isinstance(part.source, ByteRange) else None
                if found is None or not found.length:
                    cause = "empty_image" if found else "missing_image"
                    return Skip(cause, key, f"{part.source}; the sample has {', '.join(images)}")
                places[part.source] = found
    return replace(with_images(named, places.__getitem__), key=key)


def with_images(record: Record, place: Callable[[ImageSource], ByteRange]) -> Record:
    """Returns a record whose images are somewhere else.

    Args:
        place: where an image is, by where it was.
    """

    def moved(turn: Turn) -> Turn:
        parts: tuple[Part, ...] = tuple(
            replace(part, source=place(part.source)) if isinstance(part, ImagePart) else part for part in turn.parts
        )
        return replace(turn, parts=parts)

    rejected = None if record.rejected is None else moved(record.rejected)
    return replace(record, turns=tuple(moved(turn) for turn in record.turns), rejected=rejected)


def _turns(record: Record) -> tuple[Turn, ...]:
    return record.turns if record.rejected is None else (*record.turns, record.rejected)


def _extension(data: bytes) -> str:
    return next((name for beginning, name in _BEGINNINGS.items() if data.startswith(beginning)), _UNKNOWN)


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)
