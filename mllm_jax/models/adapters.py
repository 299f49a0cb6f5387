"""Low-rank adapters in a tree of parameters: put in beside the kernels, and merged into them."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mllm_jax.models.layers.low_rank import (
    ADAPTER,
    Adapters,
    LowRankConfig,
    adapter_shapes,
    initial_adapter,
    is_adaptable,
    merged_kernel,
)
from mllm_jax.models.layers.projection import SCALE, float_kernel
from mllm_jax.models.parameters import Parameters

KERNEL = "/kernel"


def linear_maps(axes: Parameters) -> frozenset[str]:
    """Paths of the linear maps beside whose kernels adapters can stand; `axes` are of all parameters."""
    flat = flatten_dict(axes, sep="/")
    return frozenset(path.removesuffix(KERNEL) for path in flat if path.endswith(KERNEL) and is_adaptable(flat[path]))


def adapter_paths(adapters: Adapters, axes: Parameters) -> frozenset[str]:
    """Paths of all parameters of the adapters."""
    flat = flatten_dict(axes, sep="/")
    return frozenset(
        f"{path}/{ADAPTER}/{name}"
        for path, config in adapters.items()
        for name in adapter_shapes(config, (1,) * len(flat[path + KERNEL]), flat[path + KERNEL])
    )


def with_abstract_adapters(
    adapters: Adapters, parameters: Parameters, axes: Parameters
) -> tuple[Parameters, Parameters]:
    """Shapes and logical axes of a model's parameters and of its adapters', which are float32."""
    shapes, names = flatten_dict(parameters, sep="/"), flatten_dict(axes, sep="/")
    for path, config in adapters.items():
        kernel = path + KERNEL
        for name, described in adapter_shapes(config, shapes[kernel].shape, names[kernel]).items():
            leaf = f"{path}/{ADAPTER}/{name}"
            shapes[leaf], names[leaf] = jax.ShapeDtypeStruct(described.shape, "float32"), described.axes
    return unflatten_dict(shapes, sep="/"), unflatten_dict(names, sep="/")


def with_initial_adapters(
    adapters: Adapters, parameters: Parameters, axes: Parameters, shardings: Mapping[str, Any], seed: int
) -> Parameters:
    """The parameters with adapters that change nothing yet.

    Args:
        adapters: path of a linear map -> its adapter.
        parameters: of the model.
        axes: logical names of their axes.
        shardings: path of an adapter's parameter -> where it goes.
        seed: of the random numbers; those of an adapter depend on it and on the adapter's path alone.
    """
    flat, names = flatten_dict(parameters, sep="/"), flatten_dict(axes, sep="/")
    for path, config in adapters.items():
        kernel_axes = names[path + KERNEL]
        inside = f"{path}/{ADAPTER}/"
        places = {name.removeprefix(inside): place for name, place in shardings.items() if name.startswith(inside)}

        def make(given: Any, key: Array, config: LowRankConfig = config, axes: Any = kernel_axes) -> Any:
            return initial_adapter(config, float_kernel(given, jnp.float32), axes, key)

        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        given = {name: flat[f"{path}/{name}"] for name in ("kernel", SCALE) if f"{path}/{name}" in flat}
        made = jax.jit(make, out_shardings=places)(given, key)
        flat |= {inside + name: leaf for name, leaf in made.items()}
    return unflatten_dict(flat, sep="/")


def without_adapters(adapters: Adapters, parameters: Parameters, axes: Parameters) -> Parameters:
    """The parameters of the plain model that computes the same: every adapter is merged into its kernel.

    Args:
        adapters: path of a linear map -> its adapter.
        parameters: of the model and of the adapters.
        axes: logical names of the axes of the model's.
    """
    flat, names = flatten_dict(parameters, sep="/"), flatten_dict(axes, sep="/")
    for path, config in adapters.items():
        kernel_axes, inside = names[path + KERNEL], f"{path}/{ADAPTER}/"
        adapter = {name.removeprefix(inside): flat.pop(name) for name in list(flat) if name.startswith(inside)}

        def merge(kernel: Array, adapter: Any, config: LowRankConfig = config, axes: Any = kernel_axes) -> Array:
            return merged_kernel(config, kernel, adapter, axes)

        kernel = flat[path + KERNEL]
        flat[path + KERNEL] = jax.jit(merge, out_shardings=kernel.sharding)(kernel, adapter)
    return unflatten_dict(flat, sep="/")
