"""Floating-point operations of matrix products and convolutions, exactly as many as are executed."""

import math
import re
from collections.abc import Mapping

from mllm_jax.planning.hlo_text import ArrayShape, Computation, Instruction, arrays_of

PRODUCTS = ("dot", "convolution")

_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


def product_flops(computation: Computation, product: Instruction) -> float:
    """2 for each multiply-add of a `dot` or a `convolution`; those with padding are not counted."""
    left, right = (_array(computation[name]) for name in product.operands[:2])
    output = _array(product)
    if product.opcode == "dot":
        contracted = [left.dimensions[axis] for axis in _numbers(product.attribute("lhs_contracting_dims"))]
        return 2.0 * output.elements * math.prod(contracted)
    labels = _LABELS.search(product.attributes)
    assert labels is not None, product.name
    inputs, kernel, outputs = labels.groups()
    window = _window(product)
    positions = math.prod(
        _positions(
            left.dimensions[inputs.index(axis)],
            output.dimensions[outputs.index(axis)],
            {key: values[place] for key, values in window.items() if place < len(values)},
        )
        for place, axis in enumerate(sorted(each for each in kernel if each.isdigit()))
    )
    features = right.dimensions[kernel.index("i")] * output.dimensions[outputs.index("f")]
    batch = output.dimensions[outputs.index("b")]
    return 2.0 * positions * features * batch / int(product.attribute("batch_group_count") or 1)


def _array(instruction: Instruction) -> ArrayShape:
    return next(arrays_of(instruction.shape))


def _numbers(text: str | None) -> list[int]:
    return [int(each) for each in (text or "").split(",") if each]


def _window(product: Instruction) -> dict[str, list[str]]:
    """`size=3x3 pad=1_1x1_1` by key, a value for each spatial axis."""
    found = _WINDOW.search(product.attributes)
    return {key: value.split("x") for key, value in re.findall(r"(\w+)=([\dx_\-]+)", found.group(1) if found else "")}


def _positions(length: int, windows: int, window: Mapping[str, str]) -> int:
    """Pairs of an element of the input and one of the kernel that meet along one axis.

    Args:
        length: of the input.
        windows: length of the output.
        window: size, stride, pad, and how far input (`lhs`) and kernel (`rhs`) are spread.
    """
    size, stride = int(window.get("size", 1)), int(window.get("stride", 1))
    spread, spacing = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    before = int(re.split(r"(?<=\d)_", window.get("pad", "0_0"))[0])
    end = (length - 1) * spread + 1
    met = 0
    for tap in range(size):
        offset = tap * spacing - before
        first, last = max(0, -(offset // stride)), min(windows - 1, (end - 1 - offset) // stride)
        if last < first:
            continue
        if spread == 1:
            met += last - first + 1
        else:
            period = spread // math.gcd(stride, spread)
            fits = next((place for place in range(period) if (place * stride + offset) % spread == 0), None)
            if fits is not None:
                met += sum(1 for place in range(first, last + 1) if place % period == fits)
    return met
