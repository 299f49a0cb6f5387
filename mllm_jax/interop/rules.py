"""Weight tables: how another library's tensors correspond to our parameters, read in both directions."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """How one tensor is arranged on their side, given our shape of it (without a layers axis)."""

    their_shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    """From their array and our shape."""
    to_theirs: Callable[[np.ndarray, Shape], np.ndarray]
    """From our array and their shape."""


def _reshape(array: np.ndarray, shape: Shape) -> np.ndarray:
    return array.reshape(shape)


def _transpose(array: np.ndarray, shape: Shape) -> np.ndarray:
    return array.T.reshape(shape)


def _reshaped(their_shape: Callable[[Shape], Shape]) -> Layout:
    return Layout(their_shape, _reshape, _reshape)


def _linear(inputs: int) -> Layout:
    """torch's `Linear.weight` [out, in], where our kernel keeps `inputs` input axes and its output axes apart."""
    return Layout(
        their_shape=lambda ours: (prod(ours[inputs:]), prod(ours[:inputs])),
        to_ours=_transpose,
        to_theirs=lambda array, theirs: array.reshape(theirs[1], theirs[0]).T,
    )


SAME = _reshaped(lambda ours: ours)
FLAT = _reshaped(lambda ours: (prod(ours),))
"""[H, C] with them one axis."""
ONE_ROW = _reshaped(lambda ours: (1, *ours))
TWO_ROWS = _reshaped(lambda ours: (1, 1, *ours))
LINEAR = _linear(1)
LINEAR_FROM_HEADS = _linear(2)
"""[H, C, D] with them [D, H * C]."""
INPUTS_FIRST = _reshaped(lambda ours: (ours[0], prod(ours[1:])))
"""[D, H, C] with them [D, H * C] (GPT-2's Conv1D)."""
INPUTS_FIRST_FROM_HEADS = _reshaped(lambda ours: (prod(ours[:-1]), ours[-1]))
"""[H, C, D] with them [H * C, D]."""
CONVOLUTION = Layout(
    their_shape=lambda ours: (ours[3], ours[2], ours[0], ours[1]),
    to_ours=lambda array, _: array.transpose(2, 3, 1, 0),
    to_theirs=lambda array, _: array.transpose(3, 2, 0, 1),
)
"""[height, width, in, out] with them [out, in, height, width]."""

FRAMES_CONVOLUTION = Layout(
    their_shape=lambda ours: (ours[4], ours[3], *ours[:3]),
    to_ours=lambda array, _: array.transpose(2, 3, 4, 1, 0),
    to_theirs=lambda array, _: array.transpose(4, 3, 0, 1, 2),
)
"""[frames, height, width, in, out] with them [out, in, frames, height, width]."""


@dataclass(frozen=True)
class Joined:
    """The place of a parameter among those that another library keeps end to end in one tensor."""

    place: int
    axis: int = 0
    """Their axis along which they lie."""


@dataclass(frozen=True)
class Rule:
    """One correspondence. A rule whose parameter a model does not have (a bias, say) is left out for that model."""

    theirs: str
    """Name of their tensor; `{layer}` stands for the number of a block, `{expert}` for that of an expert, the axis
    after the layers' in our parameter."""
    ours: str
    """Path of our parameter, of a scanned stack: `blocks/...` stands for `blocks_<layer>/...` too."""
    layout: Layout = SAME
    first: int = 0
    """Their number of our block 0."""
    every: int = 1
    """How far apart their numbers of two neighbouring blocks of ours are."""
    joined: Joined | None = None
    """Where theirs is several of our parameters in one tensor, which of them this is."""

    def name(self, block: int, expert: int = 0) -> str:
        """Their name of a parameter of our block number `block`, and of an expert in it."""
        return self.theirs.format(layer=self.first + block * self.every, expert=expert)

    def below(self, theirs: str, ours: str) -> "Rule":
        """The same rule for a part of a larger model."""
        return replace(self, theirs=theirs + self.theirs, ours=ours + self.ours)


@dataclass(frozen=True)
class Table:
    """All the rules of a family, and what else its files may hold."""

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()
    """(regular expression matched at the start of a name, what to write in its place), applied in order: other
    spellings of `theirs` that files use."""
    ignored: tuple[str, ...] = ()
    """Regular expressions (after the renames) of whole names that are known and not part of our model."""
    copies: tuple[tuple[str, str], ...] = ()
    """(name, other name): the first may repeat the second where a model has only the second (tied embeddings)."""
    continued: tuple[tuple[str, str], ...] = ()
    """(name, other name): files may keep the last rows of the first in a tensor of their own, the second."""

    def canonical(self, name: str) -> str:
        for pattern, replacement in self.renames:
            name = re.sub("^" + pattern, replacement, name)
        return name

    def ignores(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    def below(self, theirs: str, ours: str) -> "Table":
        """The table of a larger model that holds this one as a part, under two prefixes."""
        start = re.escape(theirs)
        return Table(
            rules=tuple(rule.below(theirs, ours) for rule in self.rules),
            renames=tuple((start + pattern, theirs + replacement) for pattern, replacement in self.renames),
            ignored=tuple(start + pattern for pattern in self.ignored),
            copies=tuple((theirs + copy, theirs + original) for copy, original in self.copies),
            continued=tuple((theirs + name, theirs + other) for name, other in self.continued),
        )

    def __add__(self, other: "Table") -> "Table":
        return Table(
            self.rules + other.rules,
            self.renames + other.renames,
            self.ignored + other.ignored,
            self.copies + other.copies,
            self.continued + other.continued,
        )


@dataclass(frozen=True)
class Tensor:
    """One of their tensors, or a piece of it, and the place of it in our tree."""

    name: str
    shape: Shape
    """Of the piece."""
    path: str
    index: tuple[int, ...]
    """On the leading axes of a stacked parameter: layer, expert; () where ours is the whole leaf."""
    layout: Layout
    joined: Joined | None = None
    """None: the piece is the whole tensor."""


def tensors(table: Table, leaves: Mapping[str, Any]) -> tuple[list[Tensor], list[str]]:
    """What their side must hold for our leaves (flat: path -> anything with a shape), leaf after leaf.

    Also returns the paths of leaves that no rule covers.
    """
    rules = {rule.ours: rule for rule in table.rules}
    found: list[Tensor] = []
    uncovered: list[str] = []
    for path, leaf in leaves.items():
        scanned_path, layer = (path, None) if path in rules else _unscanned(path)
        if scanned_path not in rules:
            uncovered.append(path)
            continue
        found.extend(_of_leaf(rules[scanned_path], path, tuple(leaf.shape), layer))
    return found, uncovered


def _of_leaf(rule: Rule, path: str, shape: Shape, layer: int | None) -> Iterator[Tensor]:
    """Their tensors of one leaf; `layer` is that of an unscanned block."""
    stacked_layers = layer is None and "{layer}" in rule.theirs
    stacked = stacked_layers + ("{expert}" in rule.theirs)
    their_shape = rule.layout.their_shape(shape[stacked:])
    for index in np.ndindex(shape[:stacked]):
        block, *expert = index if stacked_layers else (layer or 0, *index)
        yield Tensor(rule.name(block, *expert), their_shape, path, index, rule.layout, rule.joined)


def pieces(wanted: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """The pieces that each of their tensors is made of, in the order in which they lie."""
    found: dict[str, list[Tensor]] = {}
    for tensor in wanted:
        found.setdefault(tensor.name, []).append(tensor)
    return {
        name: sorted(parts, key=lambda part: part.joined.place if part.joined else 0) for name, parts in found.items()
    }


def whole_shape(parts: list[Tensor]) -> Shape:
    """The shape of a tensor that is made of these pieces."""
    first = parts[0]
    if first.joined is None:
        return first.shape
    axis = first.joined.axis
    return (*first.shape[:axis], sum(part.shape[axis] for part in parts), *first.shape[axis + 1 :])


def cut(array: np.ndarray, parts: list[Tensor], path: str) -> np.ndarray:
    """From a whole tensor, the piece that belongs to our parameter `path`."""
    place = [part.path for part in parts].index(path)
    part = parts[place]
    if part.joined is None:
        return array
    start = sum(other.shape[part.joined.axis] for other in parts[:place])
    piece = slice(start, start + part.shape[part.joined.axis])
    return array[(slice(None),) * part.joined.axis + (piece,)]


def _unscanned(path: str) -> tuple[str, int | None]:
    """`.../blocks_3/...` as (`.../blocks/...`, 3), and likewise for stacks called `..._blocks`."""
    match = re.search(r"(^|/)((?:\w+_)?blocks)_(\d+)/", path)
    if match is None:
        return path, None
    return f"{path[: match.start()]}{match[1]}{match[2]}/{path[match.end() :]}", int(match[3])
