"""Answers are compared as a person would: case and closing punctuation do not count, boxes count by overlap."""

import pytest

from mllm_jax.evaluation.answers import Box, exact_match, find_boxes, intersection_over_union, reference_box
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


def test_boxes_are_found_in_running_text() -> None:
    text = "The 4 is at [0.1,0.2,0.3,0.4], the 7 at [ 10, 20, 30, 40 ]; [1,2] is no box."
    assert find_boxes(text) == (Box(0.1, 0.2, 0.3, 0.4), Box(10, 20, 30, 40))


def test_a_reference_is_a_box_only_when_it_is_nothing_else() -> None:
    assert reference_box(" [0.1,0.2,0.3,0.4]. ") == Box(0.1, 0.2, 0.3, 0.4)
    assert reference_box("at [0.1,0.2,0.3,0.4]") is None


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        (Box(0, 0, 2, 2), Box(0, 0, 2, 2), 1.0),
        (Box(0, 0, 2, 2), Box(1, 0, 3, 2), 1 / 3),
        (Box(0, 0, 1, 1), Box(2, 2, 3, 3), 0.0),
        (Box(2, 2, 0, 0), Box(0, 0, 2, 2), 0.0),
        (Box(1, 1, 1, 1), Box(1, 1, 1, 1), 0.0),
    ],
)
def test_intersection_over_union(first: Box, second: Box, overlap: float) -> None:
    assert intersection_over_union(first, second) == pytest.approx(overlap)


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
