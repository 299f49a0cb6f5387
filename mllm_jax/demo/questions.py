"""What can be said and asked about a scene: captions, and questions with exactly one right answer."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from mllm_jax.demo.scenes import PlacedDigit, Scene

Kind = Literal["digit", "digits", "colour", "count", "relation", "box"]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CLEAR = 0.12
"""Two digits are left or right of (above or below) each other when their centres differ by this share of the image."""


MOST_TURNS: dict[Kind, int] = {"digit": 3, "digits": 1, "colour": 3, "count": 1, "relation": 2, "box": 1}
"""How often a conversation may ask each kind of question."""

NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Question:
    kind: Kind
    text: str
    answer: str


def caption(scene: Scene) -> str:
    """Names every digit in reading order; what is hardest to see, its value, comes before its colour and its place."""
    size = scene.pixels.shape[0]
    return "; ".join(f"{digit.value}, {digit.colour}, {place(digit, size)}" for digit in scene.digits)


def keyed_caption(scene: Scene, random: np.random.Generator) -> str:
    """Names every digit in random order, each by its place, by its colour or by its value, and then says the rest.

    What a digit is named by is the same within a caption, and names no two of them. Finding the digit that was named
    is what questions about several digits take.
    """
    size = scene.pixels.shape[0]
    things = [(place(digit, size), digit.colour, str(digit.value)) for digit in scene.digits]
    named_by = int(random.integers(3))
    if len({thing[named_by] for thing in things}) < len(things):
        named_by = 0
    ordered = [things[index] for index in random.permutation(len(things)).tolist()]
    said = (
        [f"{where}: {colour} {value}" for where, colour, value in ordered],
        [f"{colour}: {value}, {where}" for where, colour, value in ordered],
        [f"{value}: {colour}, {where}" for where, colour, value in ordered],
    )
    return "; ".join(said[named_by])


def place(digit: PlacedDigit, size: int) -> str:
    """Which ninth of the image the digit's centre is in: `top left`, `centre`, `right` ..."""
    x, y = digit.centre
    column = ("left", "", "right")[min(int(3 * x / size), 2)]
    row = ("top", "", "bottom")[min(int(3 * y / size), 2)]
    return f"{row} {column}".strip() or "centre"


def box_text(box: tuple[int, int, int, int], size: int) -> str:
    """`[x0,y0,x1,y1]` as shares of the image's width and height, with two decimals (LLaVA-1.5's convention)."""
    return "[" + ",".join(f"{edge / size:.2f}" for edge in box) + "]"


def questions(scene: Scene) -> tuple[Question, ...]:
    """Every question that has exactly one right answer in this scene, in a fixed order."""
    return (*_whole(scene), *_single(scene), *_relations(scene), *_boxes(scene))


def conversation(scene: Scene, random: np.random.Generator) -> tuple[Question, ...]:
    """A mixture of a scene's questions in random order, as the turns of one conversation to learn from."""
    asked = questions(scene)
    left = dict(MOST_TURNS)
    turns = []
    for index in random.permutation(len(asked)).tolist():
        question = asked[index]
        if left[question.kind] == 0 or (question.answer == NOTHING and random.random() < 0.5):
            continue
        left[question.kind] -= 1
        turns.append(question)
    return tuple(turns)


def one_of_each_kind(scene: Scene, random: np.random.Generator) -> tuple[Question, ...]:
    """One random question of every kind that the scene has an answer to, to be asked one by one."""
    by_kind: dict[Kind, list[Question]] = {}
    for question in questions(scene):
        by_kind.setdefault(question.kind, []).append(question)
    return tuple(found[int(random.integers(len(found)))] for found in by_kind.values())


def _whole(scene: Scene) -> list[Question]:
    count = len(scene.digits)
    asked = [Question("count", "How many digits are there?", NUMBERS[count])]
    if count == 1:
        asked.append(Question("digit", "Which digit is this?", str(scene.digits[0].value)))
        asked.append(Question("colour", "What colour is the digit?", scene.digits[0].colour))
        return asked
    ordered = sorted(scene.digits, key=lambda digit: digit.centre[0])
    clear = CLEAR / 2 * scene.pixels.shape[1]
    if all(right.centre[0] - left.centre[0] >= clear for left, right in pairwise(ordered)):
        answer = ", ".join(str(digit.value) for digit in ordered)
        asked.append(Question("digits", "Which digits are there, from left to right?", answer))
    return asked


def _single(scene: Scene) -> list[Question]:
    values = Counter(digit.value for digit in scene.digits)
    colours = Counter(digit.colour for digit in scene.digits)
    asked = []
    for digit in scene.digits:
        if values[digit.value] == 1:
            asked.append(Question("colour", f"What colour is the {digit.value}?", digit.colour))
        if colours[digit.colour] == 1:
            asked.append(Question("digit", f"Which digit is {digit.colour}?", str(digit.value)))
    return asked


def _relations(scene: Scene) -> list[Question]:
    clear = CLEAR * scene.pixels.shape[0]
    sides: dict[str, Callable[[PlacedDigit, PlacedDigit], float]] = {
        "left of": lambda other, digit: digit.centre[0] - other.centre[0],
        "right of": lambda other, digit: other.centre[0] - digit.centre[0],
        "above": lambda other, digit: digit.centre[1] - other.centre[1],
        "below": lambda other, digit: other.centre[1] - digit.centre[1],
    }
    asked = []
    for digit in scene.digits:
        others = [other for other in scene.digits if other is not digit]
        for side, distance in sides.items():
            distances = [distance(other, digit) for other in others]
            if not others or any(abs(found) < clear for found in distances):
                continue
            there = [other for other, found in zip(others, distances, strict=True) if found > 0]
            if len(there) > 1:
                continue
            answer = f"the {there[0].colour} {there[0].value}" if there else NOTHING
            asked.append(Question("relation", f"What is {side} the {digit.colour} {digit.value}?", answer))
    return asked


def _boxes(scene: Scene) -> list[Question]:
    values = Counter(digit.value for digit in scene.digits)
    size = scene.pixels.shape[0]
    return [
        Question("box", f"Where is the {digit.value}?", box_text(digit.box, size))
        for digit in scene.digits
        if values[digit.value] == 1
    ]
