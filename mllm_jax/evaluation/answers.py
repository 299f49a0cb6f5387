"""Reading answers: normalised text, and boxes written as `[x0,y0,x1,y1]` (Shikra, arXiv:2306.15195)."""

import re
import string
import unicodedata
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


def normalise(text: str) -> str:
    """Fold an answer to what an exact match compares.

    Unicode compatibility form, case, runs of white space and the punctuation at both ends do not count. The signs that
    carry a meaning inside an answer ("3.5", "red & blue") stay.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(string.punctuation + " ")


def exact_match(answer: str, reference: str) -> bool:
    """Say whether two answers are equal after `normalise`; an answer of signs alone is compared as it stands."""
    normalised = normalise(reference)
    if not normalised:
        return answer.strip() == reference.strip()
    return normalise(answer) == normalised


def find_boxes(text: str) -> tuple[Box, ...]:
    """Return every box written in the text, in order."""
    return tuple(Box(*map(float, numbers)) for numbers in _BOX.findall(text))


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
