"""The device mesh, made from a config."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh
from pydantic import Field, model_validator

from data_pipelines.config_class import Config

MESH_AXES = ("data", "fsdp", "expert", "sequence", "tensor")
"""Outermost first: the axes that talk most are innermost, where the links are shortest."""


def axes_of(config: "MeshConfig") -> tuple[str, ...]:
    """The axes of a mesh: a model without experts needs none for them."""
    return tuple(axis for axis in MESH_AXES if axis != "expert" or config.expert != 1)


class MeshConfig(Config):
    """How many ways each axis splits the work; the product is the number of devices.

    At most one axis may be -1, which takes all the devices that the others leave.
    """

    data: int = Field(default=-1, ge=-1)
    """Copies of the model, each on its own rows."""
    fsdp: int = Field(default=1, ge=-1)
    """Parts of the parameters and the optimizer state, each of which works on its own rows."""
    expert: int = Field(default=1, ge=-1)
    """Parts of the experts of a mixture, each of which works on its own rows."""
    sequence: int = Field(default=1, ge=-1)
    """Parts of a row's tokens."""
    tensor: int = Field(default=1, ge=-1)
    """Parts of the heads, of the feed-forward width and of the vocabulary."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "MeshConfig":
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        zero = [axis for axis, size in sizes.items() if size == 0]
        if zero:
            raise ValueError(f"mesh axis {zero[0]} is 0; give a positive number, or -1 to fill")
        fills = [axis for axis, size in sizes.items() if size == -1]
        if len(fills) > 1:
            raise ValueError(f"mesh axes {' and '.join(fills)} are both -1; only one axis can take what is left")
        return self


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Sizes of the mesh's axes (`axes_of`) on `devices` devices, with -1 filled in.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in axes_of(config)}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    written = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1) or "all axes 1"
    if -1 not in sizes.values():
        if fixed != devices:
            raise ValueError(
                f"The mesh {written} needs {fixed} devices, but there are {devices}. "
                "Set one axis to -1 to fill it, or change the sizes so that they multiply to the number of devices."
            )
        return tuple(sizes.values())
    if devices % fixed:
        raise ValueError(
            f"The mesh {written} cannot be filled: the fixed axes multiply to {fixed}, "
            f"which does not divide the {devices} devices."
        )
    return tuple(devices // fixed if size == -1 else size for size in sizes.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or over `devices`.

    Axis types are Auto: the compiler propagates shardings from the parameters, the batch and the
    constraints in the model.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    chosen = jax.devices() if devices is None else list(devices)
    axes = axes_of(config)
    return jax.make_mesh(
        mesh_shape(config, len(chosen)),
        axes,
        axis_types=(AxisType.Auto,) * len(axes),
        devices=chosen,
    )
