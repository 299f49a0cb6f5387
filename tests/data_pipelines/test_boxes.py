"""Boxes are read from running text, and compared by their overlap."""

import pytest

from data_pipelines.boxes import Box, find_boxes, intersection_over_union, reference_box, written_boxes


def test_boxes_are_found_in_running_text() -> None:
    text = "The 4 is at [0.1,0.2,0.3,0.4], the 7 at [ 10, 20, 30, 40 ]; [1,2] is no box."
    assert find_boxes(text) == (Box(0.1, 0.2, 0.3, 0.4), Box(10, 20, 30, 40))


def test_a_box_is_found_where_it_is_written() -> None:
    (found,) = written_boxes("at [0.3, 0.4, 0.1, 0.2].")
    assert (found.start, found.stop) == (3, 23) and found.box.upright == Box(0.1, 0.2, 0.3, 0.4)


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
