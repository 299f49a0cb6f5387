"""What can be said and asked about a scene: captions, and questions with exactly one right answer."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from mllm_jax.demo.scenes import COLOUR_NAMES, PlacedDigit, Scene

Kind = Literal["digit", "digits", "colour", "count", "relation", "box"]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CLEAR = 0.12
"""Two digits are left or right of (above or below) each other when their centres differ by this share of the image."""


MOST_TURNS: dict[Kind, int] = {"digit": 2, "digits": 1, "colour": 2, "count": 1, "relation": 1, "box": 1}
"""How often a conversation may ask each kind of question."""

NOTHING = "nothing"

NO_DIGIT = "-"

VALUE, COLOUR, PLACE = range(3)
ALL_VALUES = tuple(str(value) for value in range(10))

SINGLE_WORDS: dict[Kind, tuple[str, ...]] = {"digit": ALL_VALUES, "colour": COLOUR_NAMES, "count": NUMBERS[1:5]}
"""All answers to the kinds of question that one word answers."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an inventory goes by and tells, each an index into (value, colour, place)."""

    named_by: int
    told: int
    names: tuple[str, ...]
    """All that it can go by."""
    length: int
    """How many of them one inventory goes through."""
    share: float
    """Of the inventories."""


INVENTORIES = {
    "colours": Inventory(VALUE, COLOUR, ALL_VALUES, 6, 0.3),
    "places": Inventory(VALUE, PLACE, ALL_VALUES, 4, 0.4),
    "values": Inventory(COLOUR, VALUE, COLOUR_NAMES, 6, 0.3),
}
"""By its first word."""


@dataclass(frozen=True, slots=True)
class Question:
    kind: Kind
    text: str
    answer: str


def caption(scene: Scene, random: np.random.Generator) -> str:
    """One of two ways to write a scene down: a transcription (most of the time) or an inventory.

    A transcription puts a digit at a fixed distance from its patch, so it teaches what digits look like before
    anything can find one. Inventories teach to find one by its value or its colour.
    """
    return transcription(scene) if random.random() < 0.55 else inventory(scene, random)


def transcription(scene: Scene) -> str:
    """`grid`, then the nine ninths of the image row by row: the value of the digit whose centre is there, or `-`."""
    size = scene.pixels.shape[0]
    ninths = [NO_DIGIT] * 9
    for digit in scene.digits:
        row, column = _ninth(digit, size)
        ninths[3 * row + column] = str(digit.value)
    return " ".join(["grid", *ninths])


def inventory(scene: Scene, random: np.random.Generator) -> str:
    """What is told, then some values in random order with their colours or places, or the colours with their
    values.

    Those of the scene are among them; the others have `none`. What is not there is half of the lesson: from what is
    there alone a model learns to find digits by their colours within minutes, but by their values hardly at all.
    """
    size = scene.pixels.shape[0]
    things = [(str(digit.value), digit.colour, place(digit, size)) for digit in scene.digits]
    first_word = str(random.choice(list(INVENTORIES), p=[sort.share for sort in INVENTORIES.values()]))
    sort = INVENTORIES[first_word]
    there: dict[str, list[str]] = {}
    for thing in things:
        there.setdefault(thing[sort.named_by], []).append(thing[sort.told])
    absent = [name for name in sort.names if name not in there]
    asked = [*there, *random.choice(absent, sort.length - len(there), replace=False).tolist()]
    said = [f"{name} {' and '.join(sorted(there.get(name, ['none'])))}" for name in asked]
    return f"{first_word} " + "; ".join(said[index] for index in random.permutation(len(said)).tolist())


def place(digit: PlacedDigit, size: int) -> str:
    """Which ninth of the image the digit's centre is in: `top left`, `centre`, `right` ..."""
    row, column = _ninth(digit, size)
    return f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip() or "centre"


def _ninth(digit: PlacedDigit, size: int) -> tuple[int, int]:
    """(row, column) of the ninth of the image that the digit's centre is in."""
    x, y = digit.centre
    return min(int(3 * y / size), 2), min(int(3 * x / size), 2)


def box_text(box: tuple[int, int, int, int], size: int) -> str:
    """`[x0, y0, x1, y1]` as shares of the image's width and height, with two decimals (LLaVA-1.5's convention)."""
    return "[" + ", ".join(f"{edge / size:.2f}" for edge in box) + "]"


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


def compared(scene: Scene, random: np.random.Generator) -> tuple[Question, str]:
    """A random question that one word answers, and a wrong answer to it of the same kind."""
    asked = [question for question in questions(scene) if question.kind in SINGLE_WORDS]
    question = asked[int(random.integers(len(asked)))]
    wrong = [answer for answer in SINGLE_WORDS[question.kind] if answer != question.answer]
    return question, wrong[int(random.integers(len(wrong)))]


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
