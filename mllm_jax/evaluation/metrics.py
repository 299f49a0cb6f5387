"""Scoring answers one by one, and adding the scores up by kind of question."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_pipelines.boxes import find_boxes, intersection_over_union, reference_box
from mllm_jax.evaluation.answers import exact_match

BOX_THRESHOLD = 0.5
"""The intersection over union from which a predicted box counts as right (the usual "accuracy at 0.5")."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one answer is worth."""

    correct: bool
    overlap: float | None = None
    """Intersection over union with the reference box; None when the reference is not a box."""


@dataclass(frozen=True, slots=True)
class Result:
    """One answered question."""

    kind: str
    score: Score
    loss: float = 0.0
    """Negative log-likelihood of the reference answer, in nats, summed over its tokens."""
    tokens: int = 0
    """Tokens of the reference answer."""


@dataclass(frozen=True, slots=True)
class Total:
    """The results of one kind of question."""

    questions: int
    correct: int
    overlap: float | None
    """Mean intersection over union; None when no reference is a box."""
    loss: float | None
    """Mean negative log-likelihood of a token of the references, in nats; None when it was not measured."""

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


def total_by_kind(results: Iterable[Result]) -> dict[str, Total]:
    """Add up results by kind, kinds in alphabetical order."""
    by_kind: dict[str, list[Result]] = {}
    for result in results:
        by_kind.setdefault(result.kind, []).append(result)
    return {kind: total(by_kind[kind]) for kind in sorted(by_kind)}


def total(results: Sequence[Result]) -> Total:
    """Add up results, of which there must be some."""
    overlaps = [result.score.overlap for result in results if result.score.overlap is not None]
    tokens = sum(result.tokens for result in results)
    return Total(
        questions=len(results),
        correct=sum(result.score.correct for result in results),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        loss=sum(result.loss for result in results) / tokens if tokens else None,
    )
