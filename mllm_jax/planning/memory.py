"""What a step takes of a device's memory, and what holds it when there is too little."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from mllm_jax.models.layers.quantised import stored_bytes
from mllm_jax.training.state import TrainState

LARGE_PARAMETER = 16 * 10**6
"""Bytes from which on a parameter that is whole on every device is worth a line."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one device."""

    state: Mapping[str, float]
    """What the step is given, by what it is: parameters that train or not by part, optimizer, batch."""
    arguments: float
    """All that it is given, as the compiler lays it out."""
    outputs: float
    """That take the place of no argument."""
    code: float
    peak: float
    """At the worst moment, as the compiler counts and checks it."""
    allocated: float
    """Of temporaries, those that live at different moments and find no common place too."""
    capacity: float | None
    """None: not known."""

    @property
    def temporaries(self) -> float:
        """At the worst moment."""
        return max(0.0, self.peak - self.arguments - self.outputs)

    @property
    def tight(self) -> bool:
        """Whether it fits only because temporaries share places."""
        return self.capacity is not None and self.arguments + self.allocated > self.capacity >= self.peak

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.peak <= self.capacity


def state_bytes(state: TrainState, batch: Any) -> dict[str, float]:
    """What one device holds of a state and a batch, by what it is."""
    found: dict[str, float] = defaultdict(float)
    for kind, tree in (("trainable", state.trainable), ("frozen", state.frozen), ("average of", state.average)):
        for path, leaf in flatten_dict(tree, sep="/").items():
            found[f"{kind} {path.split('/', 1)[0]}"] += _shard_bytes(leaf)
    found["optimizer"] = sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(state.optimizer_state))
    found["batch"] = sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(batch))
    return dict(found)


def _shard_bytes(leaf: Any) -> float:
    return stored_bytes(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)


def memory_use(compiled: Any, state: Mapping[str, float], capacity: float | None) -> MemoryUse:
    """Of a compiled step.

    Where the capacity is not known the machine is a CPU, whose compiler leaves temporaries out of its peak.
    """
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    together = found.argument_size_in_bytes + outputs + found.temp_size_in_bytes
    return MemoryUse(
        state=state,
        arguments=found.argument_size_in_bytes,
        outputs=outputs,
        code=found.generated_code_size_in_bytes,
        peak=together if capacity is None else found.peak_memory_in_bytes,
        allocated=found.temp_size_in_bytes,
        capacity=capacity,
    )


class Replicated(NamedTuple):
    """A parameter that every device of a sharded mesh holds whole."""

    path: str
    shape: tuple[int, ...]
    bytes: int


def replicated_parameters(state: TrainState, larger_than: int = LARGE_PARAMETER) -> list[Replicated]:
    """Parameters above a size that no axis of the mesh splits though some axis could, largest first.

    A mesh that only copies the model (`data`) splits none of them, as it was told.
    """
    found = []
    for tree in (state.trainable, state.frozen):
        for path, leaf in flatten_dict(tree, sep="/").items():
            size = stored_bytes(leaf.shape, leaf.dtype)
            splits = [length for axis, length in leaf.sharding.mesh.shape.items() if axis != "data" and length > 1]
            if splits and size > larger_than and leaf.sharding.is_fully_replicated:
                found.append(Replicated(path, tuple(leaf.shape), size))
    return sorted(found, key=lambda each: -each.bytes)


class Buffer(NamedTuple):
    """An array that takes memory when the step runs."""

    bytes: float
    shape: str
    operation: str
    """Where in the program it comes from."""


class OutOfMemory(NamedTuple):
    """What the compiler says of a step that does not fit."""

    needed: float | None
    """Bytes of one device; None: it does not say."""
    available: float | None
    buffers: tuple[Buffer, ...]
    """The largest, where it names them."""


_SIZES = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED = (
    re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
)
_ALLOCATION = re.compile(
    r"Size: ([\d.]+)([KMGTB]?)B?\s*\n(?:\s*Operator: op_(?:type|name)=[^\n]*?op_name=\"([^\"]*)\"[^\n]*\n|"
    r"\s*Operator: op_name=\"([^\"]*)\"[^\n]*\n)?(?:\s*Shape: ([^\n]*)\n)?"
)


def out_of_memory(message: str) -> OutOfMemory | None:
    """What a compiler's error says of memory; None: it is another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = next((match for pattern in _NEEDED if (match := pattern.search(message))), None)
    needed, available = (None, None) if found is None else (_bytes(*found.group(1, 2)), _bytes(*found.group(3, 4)))
    buffers = [
        Buffer(_bytes(amount, unit), (shape or "").split("{")[0], first or second or "")
        for amount, unit, first, second, shape in _ALLOCATION.findall(message)
    ]
    return OutOfMemory(needed, available, tuple(sorted(buffers, reverse=True)))


def _bytes(amount: str, unit: str) -> float:
    return float(amount) * _SIZES[unit]


_TENSOR = re.compile(r"tensor<((?:\d+x)+)(f\d+|bf16|i\d+|ui\d+|f8\w+)>")


def kept_between_passes(text: str, rows: Collection[int], ways: int, count: int = 8) -> list[Buffer]:
    """The largest arrays of rows that the loops of a program carry, from its text before it is partitioned (StableHLO).

    What a scanned stack keeps of every layer for its backward pass is among them, and is most of what a step holds.

    Args:
        text: `lowered.as_text()`.
        rows: lengths of axes that hold rows: of the global batch, of a part of it, or of the images of either.
        ways: into how many parts the rows are split.
        count: of arrays.
    """
    found: set[tuple[float, str]] = set()
    for line in text.splitlines():
        if "stablehlo.while" not in line:
            continue
        for shape, times in Counter(match.groups() for match in _TENSOR.finditer(line.partition(" : ")[2])).items():
            lengths = [int(each) for each in shape[0].split("x") if each]
            bits = re.search(r"\d+", shape[1])
            if bits is not None and set(rows) & set(lengths):
                size = math.prod(lengths) * int(bits.group()) / 8 / ways
                found.add((size * times, f"{times} x {shape[1]}{lengths}"))
    return [Buffer(size, shape, "kept from the forward to the backward pass") for size, shape in sorted(found)[-count:]]
