"""A linear map between groups of named axes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.quantised import dequantised

SCALE = "kernel_scale"
"""Beside a kernel that is kept in whole numbers: the steps between them."""

AxisNames = tuple[str | None, ...]


class Sides(NamedTuple):
    """The axes of a kernel that maps from or to hidden states, by their places."""

    stacked: tuple[int, ...]
    """Axes over which the kernel holds many maps: layers, experts."""
    inputs: tuple[int, ...]
    """Axes that are contracted."""
    outputs: tuple[int, ...]
    """Axes that are made."""


def sides_of(axes: AxisNames) -> Sides | None:
    """How the axes of a kernel lie; None: it is no map from or to hidden states."""
    if axes.count("embed") != 1 or "vocabulary" in axes:
        return None
    width = axes.index("embed")
    stacked = tuple(at for at, name in enumerate(axes) if name in ("layers", "experts"))
    others = tuple(at for at in range(len(axes)) if at != width and at not in stacked)
    return Sides(stacked, others, (width,)) if width > others[-1] else Sides(stacked, (width,), others)


def float_kernel(variables: Mapping[str, Array], dtype: Any) -> Float[Array, "..."]:
    """The kernel among the parameters of a linear map, whether it is quantised or not."""
    if SCALE in variables:
        return dequantised(variables["kernel"], variables[SCALE], dtype)
    return variables["kernel"].astype(dtype)


def placed(kernel: Float[Array, "..."], axes: AxisNames) -> Float[Array, "..."]:
    """A kernel in the compute format, still where it lies on a mesh, by the logical names of its axes.

    So it is rounded before devices exchange it, and its gradient is summed in that format too, of which each device
    gets its own part.
    """
    # On one device it would only keep the compiler from reading the kernel in its place.
    if jax.sharding.get_abstract_mesh().size <= 1:
        return kernel
    return nn.with_logical_constraint(kernel, axes)


class Projection(nn.Module):
    """`inputs @ kernel + bias`, contracting the last `len(input_axes)` axes of the inputs.

    The kernel keeps its axes apart (`[D, H, C]`, not `[D, H * C]`), so that each can be sharded by name.
    """

    shape: tuple[int, ...]
    """Sizes of the axes that are made."""
    input_axes: AxisNames
    """Logical names of the axes that are contracted."""
    output_axes: AxisNames
    """Logical names of the axes that are made."""
    bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        contracted = len(self.input_axes)
        kernel_shape = (*inputs.shape[-contracted:], *self.shape)
        # A truncated normal of variance 1 / (inputs summed over), whatever the axes are.
        initializer = nn.initializers.truncated_normal(1.0 / math.sqrt(math.prod(inputs.shape[-contracted:])))
        given = {
            "kernel": self.param(
                "kernel",
                named(initializer, *self.input_axes, *self.output_axes),
                kernel_shape,
                self.param_dtype,
            )
        }
        if self.has_variable("params", SCALE):
            given[SCALE] = self.get_variable("params", SCALE)
        kernel = placed(float_kernel(given, self.dtype), (*self.input_axes, *self.output_axes))
        outputs = jnp.tensordot(inputs.astype(self.dtype), kernel, axes=contracted)
        if self.bias:
            zeros = named(nn.initializers.zeros, *self.output_axes)
            outputs = outputs + self.param("bias", zeros, self.shape, self.param_dtype).astype(self.dtype)
        return outputs
