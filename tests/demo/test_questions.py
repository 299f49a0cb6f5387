"""Questions have exactly one right answer in their scene."""

import numpy as np

from mllm_jax.demo.questions import MOST_TURNS, caption, conversation, keyed_caption, one_of_each_kind, questions
from mllm_jax.demo.scenes import PlacedDigit, Scene


def scene_of(*digits: tuple[int, str, tuple[int, int, int, int]]) -> Scene:
    placed = tuple(PlacedDigit(value, colour, box, source=0) for value, colour, box in digits)
    return Scene(placed, np.zeros((64, 64, 3), np.uint8))


THREE_RED = (3, "red", (4, 4, 12, 16))
SEVEN_BLUE = (7, "blue", (50, 8, 60, 20))
SEVEN_RED = (7, "red", (24, 40, 32, 52))


def answers(scene: Scene) -> dict[str, str]:
    return {question.text: question.answer for question in questions(scene)}


def test_a_caption_says_what_every_digit_is_before_its_colour_and_place():
    assert caption(scene_of(THREE_RED, SEVEN_BLUE)) == "3, red, top left; 7, blue, top right"
    assert caption(scene_of((5, "white", (28, 26, 36, 38)))) == "5, white, centre"


def test_a_keyed_caption_names_each_digit_by_what_no_other_has():
    two_sevens = scene_of(SEVEN_RED, SEVEN_BLUE)
    said = {keyed_caption(two_sevens, np.random.default_rng(seed)) for seed in range(60)}
    assert "blue: 7, top right; red: 7, bottom" in said
    assert "bottom: red 7; top right: blue 7" in said
    assert not any(caption.startswith("7:") for caption in said)


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
        "Where is the 3?": "[0.06,0.06,0.19,0.25]",
        "Where is the 7?": "[0.78,0.12,0.94,0.31]",
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
