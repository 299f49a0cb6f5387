"""Quantised kernels in a tree of parameters: each stands in its kernel's place, with its steps beside it."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.models.adapters import KERNEL, linear_maps
from mllm_jax.models.layers.projection import SCALE, AxisNames, Sides, sides_of
from mllm_jax.models.layers.quantised import KernelFormat, dequantised, quantised
from mllm_jax.models.parameters import Parameters

STEPS = f"/{SCALE}"


class ScaleShape(NamedTuple):
    """Of the steps of a kernel: as many axes as it has, each of a divisor of the kernel's size."""

    shape: tuple[int, ...]
    axes: AxisNames


def scale_shape(kernel_format: KernelFormat, shape: tuple[int, ...], axes: AxisNames) -> ScaleShape:
    """How many steps a kernel has along each of its axes.

    Args:
        kernel_format: how it is rounded. Groups lie along the last of the axes that are contracted; an axis that they
            do not divide has one step.
        shape: of the kernel.
        axes: logical names of the kernel's axes.
    """
    inputs, group = cast(Sides, sides_of(axes)).inputs, kernel_format.group
    sizes, names = list(shape), list(axes)
    for at in inputs if group is None else inputs[-1:]:
        grouped = group is not None and shape[at] % group == 0
        sizes[at] = shape[at] // group if group is not None and grouped else 1
        names[at] = "groups" if grouped and axes[at] == "embed" else None
    return ScaleShape(tuple(sizes), tuple(names))


def with_abstract_scales(
    kernel_format: KernelFormat, parameters: Parameters, axes: Parameters
) -> tuple[Parameters, Parameters]:
    """Shapes of parameters, their linear maps' kernels quantised, and the logical axes of the steps.

    Args:
        kernel_format: of the kernels.
        parameters: those that do not train, as `ShapeDtypeStruct`.
        axes: logical names of the axes of these and of others.
    """
    shapes, names = flatten_dict(parameters, sep="/"), flatten_dict(axes, sep="/")
    added: Parameters = {}
    for path in sorted(linear_maps(axes)):
        kernel = shapes.get(path + KERNEL)
        if kernel is None:
            continue
        shapes[path + KERNEL] = kernel.update(dtype=jnp.dtype(kernel_format.dtype))
        described = scale_shape(kernel_format, kernel.shape, names[path + KERNEL])
        shapes[path + STEPS], added[path + STEPS] = jax.ShapeDtypeStruct(described.shape, "float32"), described.axes
    return unflatten_dict(shapes, sep="/"), unflatten_dict(added, sep="/")


def quantised_maps(parameters: Parameters) -> frozenset[str]:
    """Paths of the linear maps whose kernels are quantised."""
    return frozenset(path.removesuffix(STEPS) for path in flatten_dict(parameters, sep="/") if path.endswith(STEPS))


def without_scales(parameters: Parameters, dtype: Any) -> Parameters:
    """Shapes of the plain model's parameters; kernels that are quantised have `dtype`."""
    flat = flatten_dict(parameters, sep="/")
    for path in quantised_maps(parameters):
        flat[path + KERNEL] = flat[path + KERNEL].update(dtype=dtype)
        del flat[path + STEPS]
    return unflatten_dict(flat, sep="/")


def with_quantised_kernels(kernel_format: KernelFormat, parameters: Parameters, abstract: Parameters) -> Parameters:
    """The parameters with the kernels quantised that `abstract` has steps for; they are given up one by one.

    Args:
        kernel_format: of the kernels.
        parameters: of the model, in floating point.
        abstract: shapes and shardings of all parameters as they are wanted.
    """
    flat, wanted = flatten_dict(parameters, sep="/"), flatten_dict(abstract, sep="/")
    for path in sorted(quantised_maps(abstract)):
        kernel, scale = wanted[path + KERNEL], wanted[path + STEPS]
        quantise = jax.jit(
            partial(quantised, kernel_format, scales=scale.shape), out_shardings=(kernel.sharding, scale.sharding)
        )
        flat[path + KERNEL], flat[path + STEPS] = quantise(flat.pop(path + KERNEL))
    return unflatten_dict(flat, sep="/")


def with_float_kernels(parameters: Parameters, dtype: Any) -> Parameters:
    """The parameters with quantised kernels in floating point."""
    flat = flatten_dict(parameters, sep="/")
    for path in sorted(quantised_maps(parameters)):
        values = flat.pop(path + KERNEL)
        restore = jax.jit(partial(dequantised, dtype=dtype), out_shardings=values.sharding)
        flat[path + KERNEL] = restore(values, flat.pop(path + STEPS))
    return unflatten_dict(flat, sep="/")
