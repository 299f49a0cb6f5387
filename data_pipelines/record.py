"""The one record type: a conversation whose parts are text and images.

A caption pair is a two-turn conversation made by a template, so every later line of code is shared between
alignment and instruction tuning.
"""

from dataclasses import dataclass
from typing import Literal

from data_pipelines.quota import Skip

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Where encoded bytes live; nothing is read until they are needed.

    `length` None means to the end of the file.
    """

    path: str
    offset: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """Encoded bytes of an image that is no range of a file, such as one in base64 or in a compressed column.

    They stay in memory until their record's row is decoded; a lane's state never holds them.
    """

    data: bytes


ImageSource = ByteRange | ImageBytes


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str
    learn: bool = True
    """Whether the loss covers it, in a turn that is learned."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An encoded image (JPEG, PNG, WebP ...) that is decoded only after its row is packed."""

    source: ImageSource


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    parts: tuple[Part, ...]
    learn: bool
    """Whether the loss covers this turn's tokens (and the end-of-turn token after them)."""


@dataclass(frozen=True, slots=True)
class ReferenceScores:
    """How probable a reference model finds the two answers of a preference pair."""

    chosen: float
    """Summed log-probability of what is supervised of the better answer, in nats."""
    rejected: float
    """Likewise of the worse one."""
    tokens: tuple[int, int]
    """Tokens of the whole conversation with each answer, images included, as the reference model read it."""


@dataclass(frozen=True, slots=True)
class Record:
    key: str
    """Where the record came from: `shard:member` or `file:index`. Unique by place, never by content."""
    turns: tuple[Turn, ...]
    rejected: Turn | None = None
    """Of a preference pair, the answer that is worse than the last turn; None: the record is no pair."""
    reference: ReferenceScores | None = None
    """Of a preference pair that a reference model has scored."""
    left_out: tuple[Skip, ...] = ()
    """What the record's place holds besides and is not wanted, such as images that a filter refuses; counted when the
    record is met."""
