"""Kernels in few bits: whole numbers, and beside them the steps between these numbers.

Symmetric rounding to the nearest, with one step for each output (LLM.int8(), https://arxiv.org/abs/2208.07339) or for
each group of inputs of an output (as QLoRA's blocks, https://arxiv.org/abs/2305.14314, but with even steps).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

KernelFormatName = Literal["int8", "int4"]


class KernelFormat(NamedTuple):
    """How a kernel is rounded."""

    dtype: Any
    largest: int
    """Largest whole number used; its negative is the smallest."""
    group: int | None
    """Inputs that share a step; None: all of an output do."""


KERNEL_FORMATS: Mapping[str, KernelFormat] = {
    "int8": KernelFormat(jnp.int8, 127, None),
    "int4": KernelFormat(jnp.int4, 7, 64),
}


def quantised(
    kernel_format: KernelFormat, kernel: Float[Array, "..."], scales: tuple[int, ...]
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """The whole numbers of a kernel, and their steps in float32; no number is off by more than half a step.

    Args:
        kernel_format: how it is rounded.
        kernel: any number of axes.
        scales: how many steps there are along each of them; divisors of their sizes.
    """
    cut = _cut(kernel.shape, scales)
    blocks = kernel.astype(jnp.float32).reshape(cut)
    scale = jnp.max(jnp.abs(blocks), axis=tuple(range(1, len(cut), 2)), keepdims=True) / kernel_format.largest
    # A group of zeros has no step of its own; any will do.
    scale = jnp.where(scale > 0, scale, 1.0)
    values = jnp.clip(jnp.round(blocks / scale), -kernel_format.largest, kernel_format.largest)
    return values.reshape(kernel.shape).astype(kernel_format.dtype), scale.reshape(scales)


def dequantised(values: Int[Array, "..."], scale: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """The kernel that whole numbers and their steps stand for."""
    cut = _cut(values.shape, scale.shape)
    steps = scale.reshape([size if at % 2 == 0 else 1 for at, size in enumerate(cut)])
    return (values.astype(jnp.float32).reshape(cut) * steps).reshape(values.shape).astype(dtype)


def _cut(shape: tuple[int, ...], scales: tuple[int, ...]) -> list[int]:
    """Every axis as two: which group, and the place in it."""
    return [size for count, whole in zip(scales, shape, strict=True) for size in (count, whole // count)]


def stored_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array where numbers of four bits lie two in a byte, as on a TPU or GPU (a CPU takes a byte each)."""
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * jnp.dtype(dtype).itemsize
    return math.ceil(math.prod(shape) * bits / 8)
