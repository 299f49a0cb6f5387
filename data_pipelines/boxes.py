"""Boxes written in text as `[x0,y0,x1,y1]` (Shikra, arXiv:2306.15195)."""

import re
from typing import NamedTuple

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


class Box(NamedTuple):
    """A box by its upper left and lower right corner, in whatever unit the data uses (Shikra: 0 to 1)."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """The area; 0 when the corners are the wrong way round."""
        return max(self.right - self.left, 0.0) * max(self.bottom - self.top, 0.0)

    @property
    def upright(self) -> "Box":
        """The same box with its corners the right way round."""
        (left, right), (top, bottom) = sorted((self.left, self.right)), sorted((self.top, self.bottom))
        return Box(left, top, right, bottom)


class WrittenBox(NamedTuple):
    """A box and where it is written."""

    start: int
    """Of its first character in the text."""
    stop: int
    box: Box


def written_boxes(text: str) -> tuple[WrittenBox, ...]:
    """Return every box in the text with its place, in order."""
    return tuple(
        WrittenBox(match.start(), match.end(), Box(*map(float, match.groups()))) for match in _BOX.finditer(text)
    )


def find_boxes(text: str) -> tuple[Box, ...]:
    """Return every box written in the text, in order."""
    return tuple(written.box for written in written_boxes(text))


def reference_box(reference: str) -> Box | None:
    """Return the box that a reference answer consists of, or None when it is anything else."""
    match = _BOX.fullmatch(reference.strip().rstrip("."))
    return Box(*map(float, match.groups())) if match else None


def intersection_over_union(first: Box, second: Box) -> float:
    """Return the area shared by two boxes over the area that they cover together; 0 for empty boxes."""
    shared = Box(
        max(first.left, second.left),
        max(first.top, second.top),
        min(first.right, second.right),
        min(first.bottom, second.bottom),
    ).area
    covered = first.area + second.area - shared
    return shared / covered if covered > 0.0 else 0.0
