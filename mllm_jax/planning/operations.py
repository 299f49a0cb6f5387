"""What one instruction asks of a device: operations by part of the model, and bytes of memory."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from mllm_jax.planning.hlo_text import DEVICE_MEMORY, Computation, Instruction, Program, arrays_of, bytes_of, root_of
from mllm_jax.planning.products import PRODUCTS, product_flops

PARTS = ("vision", "connector", "decoder", "head", "other")

_PART_NAMES = (
    ("head", re.compile(r"\.logits\b")),
    ("vision", re.compile(r"/encoder\b")),
    ("connector", re.compile(r"/connector\b")),
    ("decoder", re.compile(r"/decoder\b")),
)
_AGAIN = "rematted_computation"

FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "add-dependency", "domain", "iota", "get-dimension-size"),
)
"""Opcodes that cost nothing."""

_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = ("dynamic-update-slice", "scatter")
_COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)


def part_of(operation: str) -> str:
    """The part of the model that an operation belongs to, by where in the program it comes from."""
    return next((part for part, pattern in _PART_NAMES if pattern.search(operation)), "other")


def is_again(operation: str) -> bool:
    """Whether the backward pass does it a second time, to save memory."""
    return _AGAIN in operation


Totals = defaultdict[str, float]
"""Sums by a name."""


@dataclass
class Work:
    """What an instruction does, all that it calls included."""

    flops: Totals = field(default_factory=lambda: defaultdict(float))
    """Of matrix products, by part."""
    again: float = 0.0
    """Of these, those that are done a second time."""
    bytes: float = 0.0
    """That are read from a device's memory and written to it."""


def work_of(program: Program, computation: Computation, instruction: Instruction) -> Work:
    """Of an instruction that is no loop, no branch, no collective and no kernel."""
    work = Work(bytes=moved_bytes(program, computation, instruction))
    for scope, product in products_of(program, computation, instruction):
        flops = product_flops(scope, product)
        operation = product.operation or instruction.operation
        work.flops[part_of(operation)] += flops
        work.again += flops if is_again(operation) else 0.0
    return work


def products_of(
    program: Program, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Every matrix product of an instruction, with the computation it stands in."""
    if instruction.opcode in PRODUCTS:
        yield computation, instruction
    elif instruction.opcode in ("fusion", "call", "async-start"):
        for inner, each in called_instructions(program, instruction):
            yield from products_of(program, inner, each)


def called_instructions(program: Program, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """Instructions of the computation that a fusion or a call runs once."""
    for key in ("calls", "to_apply") if instruction.opcode == "call" else ("calls",):
        for name in instruction.called(key):
            if name in program.computations:
                inner = program.computations[name]
                yield from ((inner, each) for each in inner.values())


def moved_bytes(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes of device memory that an instruction reads and writes.

    Of an array that is only sliced, or written in place, the slice counts; what lies in memories on the chip does not.
    """
    if instruction.opcode in FREE:
        return 0.0
    if instruction.opcode in _IN_PLACE:
        update = computation[instruction.operands[1 if instruction.opcode == "dynamic-update-slice" else -1]]
        return 2 * bytes_of(update.shape, DEVICE_MEMORY)
    if instruction.opcode in _SLICES:
        return bytes_of(instruction.shape, DEVICE_MEMORY) + min(
            bytes_of(instruction.shape), bytes_of(computation[instruction.operands[0]].shape, DEVICE_MEMORY)
        )
    if instruction.opcode == "fusion":
        fused = program.computations[instruction.called("calls")[0]]
        return _read_by(computation, instruction, fused) + _written_by(instruction, fused)
    read = {name: computation[name] for name in instruction.operands if name in computation}
    return bytes_of(instruction.shape, DEVICE_MEMORY) + sum(
        bytes_of(each.shape, DEVICE_MEMORY) for each in read.values()
    )


def _read_by(computation: Computation, fusion: Instruction, fused: Computation) -> float:
    parameters = {each.name: int(each.literal) for each in fused.values() if each.opcode == "parameter"}
    uses: dict[str, list[Instruction]] = {name: [] for name in parameters}
    for each in fused.values():
        for name in set(each.operands) & parameters.keys():
            uses[name].append(each)
    total = 0.0
    for name, place in parameters.items():
        outside = bytes_of(computation[fusion.operands[place]].shape, DEVICE_MEMORY)
        total += min(outside, sum(_part_read(use, name, outside) for use in uses[name]))
    return total


def _part_read(use: Instruction, parameter: str, whole: float) -> float:
    """Bytes of a parameter that one of its uses inside a fusion reads."""
    if use.opcode in _SLICES and use.operands[0] == parameter:
        return bytes_of(use.shape)
    if use.opcode == "dynamic-update-slice" and use.operands[0] == parameter:
        return 0.0
    # A collective that a fusion carries along reads over the links, and passes its buffers on.
    return 0.0 if use.opcode in ("tuple", "custom-call") or _is_collective(use) else whole


def _written_by(fusion: Instruction, fused: Computation) -> float:
    root = root_of(fused)
    results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    shapes = fusion.shape if isinstance(fusion.shape, tuple) else (fusion.shape,)
    total = 0.0
    for result, shape in zip(results, shapes, strict=False):
        while result.opcode == "bitcast":
            result = fused[result.operands[0]]
        if result.opcode == "parameter" or result.opcode == "custom-call" or _is_collective(result):
            continue
        written = fused[result.operands[1]].shape if result.opcode == "dynamic-update-slice" else shape
        total += min(bytes_of(written), bytes_of(shape, DEVICE_MEMORY))
    return total


def _is_collective(instruction: Instruction) -> bool:
    return collective_kind(instruction) is not None


def collective_kind(instruction: Instruction) -> str | None:
    """Such as `all-gather`, also of its asynchronous start; None: it is none."""
    name = instruction.opcode.removesuffix("-start")
    return name if name in _COLLECTIVES else None


def largest_array(instruction: Instruction) -> float:
    """Bytes of the largest array of a result."""
    return max((each.bytes for each in arrays_of(instruction.shape)), default=0.0)
