"""Scoring answers one by one, and adding the scores up by kind of question."""

from collections.abc import Iterable
from dataclasses import dataclass

from mllm_jax.evaluation.answers import exact_match, find_boxes, intersection_over_union, reference_box

BOX_THRESHOLD = 0.5
"""The intersection over union from which a predicted box counts as right (the usual "accuracy at 0.5")."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one answer is worth."""

    correct: bool
    overlap: float | None = None
    """Intersection over union with the reference box; None when the reference is not a box."""


@dataclass(frozen=True, slots=True)
class Total:
    """The scores of one kind of question."""

    questions: int
    correct: int
    overlap: float | None
    """Mean intersection over union; None when no reference is a box."""

    @property
    def accuracy(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.correct / self.questions


def score_answer(answer: str, reference: str) -> Score:
    """Score an answer: a box by its overlap with the reference box, anything else by normalised exact match.

    An answer that holds no box or several has overlap 0: a model may not win by listing boxes.
    """
    expected = reference_box(reference)
    if expected is None:
        return Score(correct=exact_match(answer, reference))
    found = find_boxes(answer)
    overlap = intersection_over_union(found[0], expected) if len(found) == 1 else 0.0
    return Score(correct=overlap >= BOX_THRESHOLD, overlap=overlap)


def total_by_kind(scores: Iterable[tuple[str, Score]]) -> dict[str, Total]:
    """Add up scores by kind, kinds in alphabetical order."""
    by_kind: dict[str, list[Score]] = {}
    for kind, score in scores:
        by_kind.setdefault(kind, []).append(score)
    return {kind: total(by_kind[kind]) for kind in sorted(by_kind)}


def total(scores: list[Score]) -> Total:
    """Add up a list of scores that is not empty."""
    overlaps = [score.overlap for score in scores if score.overlap is not None]
    return Total(
        questions=len(scores),
        correct=sum(score.correct for score in scores),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
    )
