"""How often the body of a loop runs: written by the compiler, or read from the loop itself."""

import math
import re
from collections.abc import Callable

from mllm_jax.planning.hlo_text import Computation, Instruction, Program, root_of

_KNOWN = re.compile(r'known_trip_count\\?"?:\s*\{\\?"?n\\?"?:\s*\\?"?(\d+)')
_PASS_ON = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "opt-barrier")


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where only the data say it.

    A loop counts from a constant to a constant by a constant (`lax.scan`, `lax.map`, `fori_loop`), which the XLA of a
    CPU or GPU writes down and that of a TPU does not.

    Args:
        program: of all computations.
        computation: the one that the loop stands in.
        loop: the instruction.
    """
    known = _KNOWN.search(loop.attributes)
    if known is not None:
        return int(known.group(1))
    condition, body = (program.computations[loop.called(key)[0]] for key in ("condition", "body"))
    compared = _comparison(program, condition)
    if compared is None:
        return None
    index, direction, bound = compared
    first = _element_of(computation, computation[loop.operands[0]], index)
    step = _step(program, body, index)
    if first is None or step is None or step == 0:
        return None
    distance = (bound - first) / step
    return max(0, math.floor(distance) + 1 if direction in ("LE", "GE") else math.ceil(distance))


def _comparison(program: Program, condition: Computation) -> tuple[int, str, int] | None:
    """Of a condition `counter < constant`: the counter's place in the loop's tuple, the direction, and the constant."""
    compare, scope, outer = _inside(program, condition, root_of(condition))
    if compare.opcode != "compare":
        return None
    left, right = (_followed(scope, name, outer) for name in compare.operands)
    direction = compare.attribute("direction") or ""
    if left.opcode == "constant":
        left, right = right, left
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    bound = _integer(right)
    if bound is None or left.opcode != "get-tuple-element" or direction == "EQ":
        return None
    return int(left.attribute("index") or 0), direction, bound


def _inside(
    program: Program, computation: Computation, instruction: Instruction
) -> tuple[Instruction, Computation, Callable[[Instruction], Instruction]]:
    """What a fusion of one result computes last, where it stands, and what its parameters are outside."""
    if instruction.opcode != "fusion" and instruction.opcode != "call":
        return instruction, computation, lambda parameter: parameter
    key = "calls" if instruction.opcode == "fusion" else "to_apply"
    fused = program.computations[instruction.called(key)[0]]

    def outer(parameter: Instruction) -> Instruction:
        return _followed(computation, instruction.operands[int(parameter.literal)])

    return root_of(fused), fused, outer


def _followed(
    computation: Computation, name: str, outer: Callable[[Instruction], Instruction] = lambda parameter: parameter
) -> Instruction:
    """The instruction behind copies and casts."""
    found = computation[name]
    while found.opcode in _PASS_ON:
        found = computation[found.operands[0]]
    return outer(found) if found.opcode == "parameter" else found


def _element_of(computation: Computation, tuple_: Instruction, index: int) -> int | None:
    """A constant of a tuple."""
    if tuple_.opcode != "tuple":
        return None
    return _integer(_followed(computation, tuple_.operands[index]))


def _integer(instruction: Instruction) -> int | None:
    number = re.fullmatch(r"-?\d+", instruction.literal.strip())
    return int(number.group()) if instruction.opcode == "constant" and number else None


def _step(program: Program, body: Computation, index: int) -> int | None:
    """What a turn adds to the counter; a body that was unrolled adds several times."""
    root = root_of(body)
    if root.opcode != "tuple":
        return None
    here = _followed(body, root.operands[index])
    total = 0
    while here.opcode != "get-tuple-element":
        added, scope, outer = _inside(program, body, here)
        if added.opcode != "add":
            return None
        left, right = (_followed(scope, name, outer) for name in added.operands)
        if _integer(left) is not None:
            left, right = right, left
        number = _integer(right)
        if number is None:
            return None
        total, here = total + number, left
    return total if int(here.attribute("index") or 0) == index else None
