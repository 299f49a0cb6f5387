"""Reads the text of a compiled program (optimised HLO): computations, their instructions, and the shapes of these."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_BITS = {"pred": 8, "token": 0, "opaque": 0}

DEVICE_MEMORY = 0
HOST_MEMORY = 5
"""Memory spaces as a TPU numbers them; 1 is VMEM on the chip, the others hold scalars and semaphores."""


@dataclass(frozen=True, slots=True)
class ArrayShape:
    dtype: str
    dimensions: tuple[int, ...]
    memory: int = DEVICE_MEMORY

    @property
    def elements(self) -> int:
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> float:
        return self.elements * bits_of(self.dtype) / 8


Shape = ArrayShape | tuple["Shape", ...]  # type: ignore[misc]


@functools.cache
def bits_of(dtype: str) -> int:
    """Of an element of a type as HLO writes it (`bf16`, `f8e4m3fn`, `s4`, `pred`).

    Raises:
        ValueError: no type is written so.
    """
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    if width is None:
        raise ValueError(f"no type of HLO is written {dtype!r}")
    return int(width.group(1))


def arrays_of(shape: Shape) -> Iterator[ArrayShape]:
    """The arrays of a shape, those of nested tuples too."""
    if isinstance(shape, ArrayShape):
        yield shape
    else:
        for each in shape:
            yield from arrays_of(each)


def bytes_of(shape: Shape, memory: int | None = None) -> float:
    """Of all arrays, or of those in one memory."""
    return sum(each.bytes for each in arrays_of(shape) if memory is None or each.memory == memory)


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    """Names in the same computation."""
    literal: str
    """What stands between the parentheses: of a constant its value, of a parameter its number."""
    attributes: str
    """Everything behind the parentheses."""
    is_root: bool

    def called(self, key: str) -> tuple[str, ...]:
        """Names of the computations of an attribute, such as `calls=%x` or `branch_computations={%x, %y}`."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return () if found is None else tuple(re.findall(r"[\w.\-]+", found.group(1)))

    def attribute(self, key: str) -> str | None:
        """The value of an attribute of digits, letters and commas, without the braces around it."""
        found = re.search(rf"\b{key}=\{{?([\w.\-:]*(?:,[\w.\-:]+)*)", self.attributes)
        return None if found is None else found.group(1)

    @property
    def operation(self) -> str:
        """Where in the program it comes from: `jit(train_step)/jvp(...)/decoder/...`; empty where nothing says it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return "" if found is None else found.group(1)

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return "" if found is None else found.group(1)

    def estimated(self, quantity: str) -> int | None:
        """A whole number that the backend writes into its config: `estimated_cycles`, or `flops` of a kernel."""
        found = re.search(rf'\\?"{quantity}\\?":\s*\\?"?(\d+)', self.attributes)
        # Where it cannot tell, the compiler writes the largest number that there is.
        return None if found is None or int(found.group(1)) >= 2**60 else int(found.group(1))


Computation = Mapping[str, Instruction]
"""Instructions by name, in the order of the text: of a scheduled program, the order in which they run."""


@dataclass(frozen=True, slots=True)
class Program:
    computations: Mapping[str, Computation]
    entry: str


def root_of(computation: Computation) -> Instruction:
    return next(each for each in computation.values() if each.is_root)


def parse_program(text: str) -> Program:
    """
    Raises:
        ValueError: the text has no entry computation, or an instruction that cannot be read.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    current: dict[str, Instruction] | None = None
    for line in _whole_lines(text):
        if current is None:
            header = _HEADER.match(line)
            if header is not None:
                current = computations.setdefault(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
        elif _END.match(line):
            current = None
        elif line.strip():
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    return Program(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines of a program; what a kernel says of itself may be written over several."""
    whole = ""
    for line in text.splitlines():
        if _END.match(line) or _BEGINNING.match(line) or _HEADER.match(line):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_END = re.compile(r"^\}(?:\s*$|, )")
_BEGINNING = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_WITHOUT_OPERANDS = ("constant", "parameter")
_OPERAND = re.compile(r"%?([A-Za-z_][\w.\-]*)(?=\s*(?:,|$))")
_MEMORY = re.compile(r"S\((\d+)\)")


def _instruction(line: str) -> Instruction:
    beginning = _BEGINNING.match(line)
    if beginning is None:
        raise ValueError(f"this is no instruction of HLO: {line.strip()[:120]}")
    shape, end = _shape(line, beginning.end())
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"this instruction has no opcode: {line.strip()[:120]}")
    closing = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : closing]
    return Instruction(
        name=beginning.group(2),
        opcode=opcode.group(1),
        shape=shape,
        operands=() if opcode.group(1) in _WITHOUT_OPERANDS else tuple(_OPERAND.findall(inside)),
        literal=inside,
        attributes=line[closing + 1 :],
        is_root=beginning.group(1) is not None,
    )


def _closing(line: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
    depth = 0
    for place in range(opening, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a parenthesis is never closed: {line.strip()[:120]}")


def _shape(line: str, start: int) -> tuple[Shape, int]:
    """The shape that begins at `start`, and where it ends."""
    if line[start] != "(":
        return _array_shape(line, start)
    parts: list[Shape] = []
    place = start + 1
    while line[place] != ")":
        if line[place] in ", ":
            place += 1
        elif line.startswith("/*", place):
            place = line.index("*/", place) + 2
        else:
            part, place = _shape(line, place)
            parts.append(part)
    return tuple(parts), place + 1


def _array_shape(line: str, start: int) -> tuple[ArrayShape, int]:
    found = _ARRAY.match(line, start)
    if found is None:
        raise ValueError(f"this is no shape: {line[start : start + 60]}")
    dtype, dimensions, layout = found.groups()
    lengths = tuple(int(each.removeprefix("<=")) for each in dimensions.split(",") if each)
    memory = _MEMORY.search(layout or "")
    return ArrayShape(dtype, lengths, int(memory.group(1)) if memory else DEVICE_MEMORY), found.end()
