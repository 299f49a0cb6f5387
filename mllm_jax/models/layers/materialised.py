"""Values that are stored whole before they are read, and their gradients likewise."""

from typing import TypeVar

import jax

from mllm_jax.models.layers.attention_kernels import platform

Value = TypeVar("Value")


def materialised(value: Value) -> Value:
    """The same value. For a TPU, XLA would compute what stands here again for every tile of the matrix products that
    read it, which takes them up to twice the time; other compilers have no such habit and decide for themselves."""
    return jax.lax.optimization_barrier(value) if platform() == "tpu" else value
