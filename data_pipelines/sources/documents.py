"""Interleaved documents: texts and images in the order in which they are read, with no questions and no roles.

A document is a record of one assistant turn that holds both; every chat template writes it, `document` and `plain`
with nothing of their own around it but an end.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from data_pipelines.quota import FILTERED, Skip
from data_pipelines.record import ImageBytes, ImagePart, ImageSource, Part, Record, TextPart, Turn
from data_pipelines.sources.filters import FieldFilter, refusal
from data_pipelines.sources.webdataset import encodable


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image that a document names or holds."""

    name: str
    data: str | None = None
    """The encoded image in base64, of a document that holds it."""
    refusal: Skip | None = None
    """Why it is not wanted, by what the document says of it."""


Piece = str | NamedImage

Find = Callable[[NamedImage], ImageSource | Skip]


class DocumentOptions(Config):
    """What is kept of a document."""

    joint: ClassVar[str] = " "
    """What stands between two texts that no image parts."""

    sentences: FieldFilter | None = None
    """Bounds on the number of texts of a document that are not blank; others are counted as `filtered_sentences`."""
    least_images: int = Field(default=1, ge=0)
    """Images that a document must keep, or it is counted as `filtered_images`; 0 keeps text alone."""
    most_images: int | None = Field(default=None, gt=0)
    """Images that a document keeps, the first ones; the others are left out and counted as `filtered_most_images`."""
    missing_images: Literal["skip", "leave_out"] = "skip"
    """What happens to a document one of whose images is not there, is empty or is no base64: it is skipped, or the
    image is left out and counted as `filtered_` and the cause."""
    learn_before_image: bool = True
    """Whether text before a document's first image is learned; Flamingo does not. Text without images always is."""

    @model_validator(mode="after")
    def _some_images(self) -> "DocumentOptions":
        if self.most_images is not None and self.least_images > self.most_images:
            raise ValueError(f"least_images {self.least_images} exceeds most_images {self.most_images}")
        return self


def record_of(pieces: list[Piece], options: DocumentOptions, key: str, find: Find) -> Record | Skip:
    """Returns the record of a document.

    Args:
        pieces: in their order.
        options: what is kept.
        key: of the document.
        find: says where the encoded image is.
    """
    texts = [piece for piece in pieces if isinstance(piece, str) and piece.strip()]
    if not texts:
        return Skip("no_text", key, "nothing but images and white space")
    if not all(encodable(text) for text in texts):
        return Skip("not_utf8", key, "a lone surrogate")
    if options.sentences is not None:
        unwanted = refusal({"sentences": options.sentences}, {"sentences": len(texts)}, key)
        if unwanted is not None:
            return unwanted
    left_out: list[Skip] = []
    parts: list[Part] = []
    images = 0
    for piece in pieces:
        part = TextPart(piece.strip()) if isinstance(piece, str) else _image(piece, images, options, key, find)
        if isinstance(part, Skip):
            if not part.cause.startswith(FILTERED):
                return part
            left_out.append(part)
        else:
            images += isinstance(part, ImagePart)
            parts.append(part)
    if images < options.least_images:
        causes = ", ".join(sorted({skip.cause for skip in left_out}))
        return Skip(f"{FILTERED}images", key, f"{images} images, left out: {causes or 'none'}")
    return _learned(_joined(parts, options.joint), options, left_out, key)


def _image(piece: NamedImage, before: int, options: DocumentOptions, key: str, find: Find) -> ImagePart | Skip:
    """The image, or why it is not there; a cause that says "filtered" leaves it out of its document."""
    named = f"{key}#{piece.name}"
    if piece.refusal is not None:
        return Skip(piece.refusal.cause, named, piece.refusal.detail)
    if options.most_images is not None and before == options.most_images:
        return Skip(f"{FILTERED}most_images", named, f"{before} images stand before it")
    found = _decoded(piece.data, key) if piece.data is not None else find(piece)
    if not isinstance(found, Skip):
        return ImagePart(found)
    if options.missing_images == "skip":
        return found
    return Skip(f"{FILTERED}{found.cause}", named, found.detail)


def _decoded(data: str, key: str) -> ImageBytes | Skip:
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError as error:
        return Skip("bad_base64", key, str(error))
    return ImageBytes(decoded) if decoded else Skip("empty_image", key, "the image has no bytes")


def _joined(parts: list[Part], joint: str) -> list[Part]:
    """Neighbouring texts as one, blank ones left out."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, TextPart) and not part.text:
            continue
        if isinstance(part, TextPart) and isinstance(last, TextPart):
            joined[-1] = TextPart(last.text + joint + part.text)
        else:
            joined.append(part)
    return joined


def _learned(parts: list[Part], options: DocumentOptions, left_out: list[Skip], key: str) -> Record | Skip:
    first = next((index for index, part in enumerate(parts) if isinstance(part, ImagePart)), 0)
    before = parts[0]
    if not options.learn_before_image and first and isinstance(before, TextPart):
        # Texts are joined, so that it is the only one before the first image.
        parts = [TextPart(before.text, learn=False), *parts[1:]]
    if not any(isinstance(part, TextPart) and part.learn for part in parts):
        return Skip(f"{FILTERED}learned_text", key, "no text follows the first image")
    return Record(key, (Turn("assistant", tuple(parts), learn=True),), left_out=tuple(left_out))
