"""Questions have exactly one right answer in their scene."""

import numpy as np
import pytest

from mllm_jax.demo.questions import (
    INVENTORIES,
    MOST_TURNS,
    caption,
    conversation,
    inventory,
    one_of_each_kind,
    questions,
    transcription,
)
from mllm_jax.demo.scenes import PlacedDigit, Scene


def scene_of(*digits: tuple[int, str, tuple[int, int, int, int]]) -> Scene:
    placed = tuple(PlacedDigit(value, colour, box, source=0) for value, colour, box in digits)
    return Scene(placed, np.zeros((64, 64, 3), np.uint8))


THREE_RED = (3, "red", (4, 4, 12, 16))
SEVEN_BLUE = (7, "blue", (50, 8, 60, 20))
SEVEN_RED = (7, "red", (24, 40, 32, 52))


def answers(scene: Scene) -> dict[str, str]:
    return {question.text: question.answer for question in questions(scene)}


def test_a_transcription_has_a_sign_for_every_ninth_of_the_image():
    assert transcription(scene_of(THREE_RED, SEVEN_BLUE)) == "grid 3 - 7 - - - - - -"
    assert transcription(scene_of((5, "white", (28, 26, 36, 38)))) == "grid - - - - 5 - - - -"


def test_an_inventory_goes_through_some_values_or_all_colours_and_says_which_are_not_there():
    scene = scene_of(SEVEN_RED, SEVEN_BLUE, THREE_RED)
    told = {
        "colours": {"7": "blue and red", "3": "red"},
        "places": {"7": "bottom and top right", "3": "top left"},
        "values": {"red": "3 and 7", "blue": "7"},
    }
    seen = set()
    for seed in range(40):
        first, _, rest = inventory(scene, np.random.default_rng(seed)).partition(" ")
        entries = dict(entry.split(" ", 1) for entry in rest.split("; "))
        assert len(entries) == INVENTORIES[first].length
        assert {name: said for name, said in entries.items() if said != "none"} == told[first]
        seen.add(first)
    assert seen == set(told)


def test_captions_are_of_every_sort_and_mostly_transcriptions():
    said = [caption(scene_of(THREE_RED, SEVEN_BLUE), np.random.default_rng(seed)) for seed in range(1000)]
    share = {sort: sum(one.startswith(sort) for one in said) / len(said) for sort in ("grid", *INVENTORIES)}
    assert share["grid"] > 0.5 and min(share.values()) > 0.08 and sum(share.values()) == pytest.approx(1)


def test_every_kind_is_answered():
    assert answers(scene_of(THREE_RED, SEVEN_BLUE)) == {
        "How many digits are there?": "two",
        "Which digits are there, from left to right?": "3, 7",
        "What colour is the 3?": "red",
        "Which digit is red?": "3",
        "What colour is the 7?": "blue",
        "Which digit is blue?": "7",
        "What is left of the red 3?": "nothing",
        "What is right of the red 3?": "the blue 7",
        "What is left of the blue 7?": "the red 3",
        "What is right of the blue 7?": "nothing",
        "Where is the 3?": "[0.06, 0.06, 0.19, 0.25]",
        "Where is the 7?": "[0.78, 0.12, 0.94, 0.31]",
    }


def test_what_two_digits_share_is_not_asked():
    asked = answers(scene_of(THREE_RED, SEVEN_RED, SEVEN_BLUE))
    assert not {"What colour is the 7?", "Where is the 7?", "Which digit is red?"} & set(asked)
    assert asked["Which digit is blue?"] == "7"


def test_a_side_with_several_digits_or_with_one_hardly_there_is_not_asked():
    asked = answers(scene_of(THREE_RED, SEVEN_RED, SEVEN_BLUE))
    assert "What is right of the red 3?" not in asked
    assert "What is above the red 7?" not in asked
    assert asked["What is right of the red 7?"] == "the blue 7"
    assert "What is above the red 3?" not in asked


def test_a_lone_digit_is_asked_about_without_naming_it():
    asked = answers(scene_of(THREE_RED))
    assert asked["Which digit is this?"] == "3"
    assert asked["What colour is the digit?"] == "red"
    assert not any(text.startswith("What is") for text in asked)


def test_conversations_keep_to_the_most_turns_of_each_kind():
    scene = scene_of(THREE_RED, SEVEN_RED, SEVEN_BLUE)
    for seed in range(20):
        turns = conversation(scene, np.random.default_rng(seed))
        kinds = [turn.kind for turn in turns]
        assert turns and all(kinds.count(kind) <= MOST_TURNS[kind] for kind in kinds)
        assert len({turn.text for turn in turns}) == len(turns)


def test_one_question_of_each_kind():
    chosen = one_of_each_kind(scene_of(THREE_RED, SEVEN_BLUE), np.random.default_rng(0))
    assert sorted(question.kind for question in chosen) == ["box", "colour", "count", "digit", "digits", "relation"]
