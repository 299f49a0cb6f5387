"""Answers are compared as a person would: case and closing punctuation do not count, boxes count by overlap."""

import pytest

from mllm_jax.evaluation.answers import exact_match
from mllm_jax.evaluation.metrics import Result, Total, score_answer, total_by_kind


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("Red.", "red", True),
        ("  light   blue ", "Light blue", True),
        ("ﬁve", "five", True),
        ("3.5", "35", False),
        ("red", "blue", False),
        ("", "red", False),
        ("?", "!", False),
        ("?", "?", True),
    ],
)
def test_exact_match_after_normalising(answer: str, reference: str, equal: bool) -> None:
    assert exact_match(answer, reference) is equal


def test_a_box_is_right_from_half_overlap_and_listing_boxes_does_not_help() -> None:
    assert score_answer("[0,0,1,1]", "[0,0,1,2]").correct
    assert not score_answer("[0,0,1,0.9]", "[0,0,1,2]").correct
    assert score_answer("[0,0,1,1] [0,0,1,2]", "[0,0,1,2]").overlap == 0.0
    assert score_answer("nowhere", "[0,0,1,2]").overlap == 0.0


def test_results_add_up_by_kind() -> None:
    results = [
        Result("colour", score_answer("red", "Red"), loss=3.0, tokens=1),
        Result("colour", score_answer("blue", "Red"), loss=1.0, tokens=3),
        Result("box", score_answer("[0,0,1,1]", "[0,0,1,2]")),
    ]
    totals = total_by_kind(results)
    assert totals == {"box": Total(1, 1, 0.5, None), "colour": Total(2, 1, None, 1.0)}
    assert totals["colour"].accuracy == 0.5
