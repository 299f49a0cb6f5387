"""The one table from logical axis names to mesh axes, and the shardings that follow from it."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ParameterTree = dict[str, Any]
"""Nested dicts of arrays, of shapes or of shardings; the path of a leaf is its keys joined by slashes."""

MeshAxes = str | tuple[str, ...] | None

ROW_AXES = ("data", "fsdp", "expert")

RULES: tuple[tuple[str, MeshAxes], ...] = (
    ("layers", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_width", None),
    ("feed_forward", "tensor"),
    ("vocabulary", "tensor"),
    ("patches", None),
    ("positions", None),
    ("experts", "expert"),
    ("rank", "fsdp"),
    ("groups", "fsdp"),
    ("rows", ROW_AXES),
    ("images", (*ROW_AXES, "sequence")),
    ("tokens", "sequence"),
    ("embed_activation", None),
    ("heads_activation", "tensor"),
    ("kv_heads_activation", "tensor"),
    ("feed_forward_activation", "tensor"),
    ("vocabulary_activation", "tensor"),
    ("experts_activation", "expert"),
    ("rows_of_experts", ("data", "fsdp")),
)
"""Logical axis -> mesh axes. The first group names axes of parameters, the rest axes of activations. An axis that a
mesh does not have splits nothing."""


WHOLE_IF_UNEVEN = ("rank", "groups")
"""Axes of arrays so small that they stay whole where their mesh axes do not divide them."""


class ShardingError(ValueError):
    """Parameters that the rules cannot place on the mesh, all of them in one message."""


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The mesh axes that split the logical axis `name`; None is an axis that is never split.

    Raises:
        ShardingError: no rule has this name.
    """
    if name is None:
        return ()
    rules = dict(RULES)
    if name not in rules:
        raise ShardingError(f"no rule for the logical axis {name!r}; the rules know {', '.join(rules)}")
    axes = rules[name]
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def parameter_shardings(logical_axes: ParameterTree, shapes: ParameterTree, mesh: Mesh) -> ParameterTree:
    """The sharding of every parameter.

    Args:
        logical_axes: the tree of tuples of logical axis names, one name (or None) an array axis.
        shapes: the same tree of arrays or `ShapeDtypeStruct`.
        mesh: where they go.

    Raises:
        ShardingError: axes without a rule, used twice in one array, or not divided by their mesh axes;
            every such parameter is named, with the nearest width that would do.
    """
    flat_shapes = flatten_dict(shapes, sep="/")
    flat_axes = flatten_dict(logical_axes, sep="/")
    shardings: dict[str, NamedSharding] = {}
    problems: list[str] = []
    for path, leaf in flat_shapes.items():
        try:
            shardings[path] = NamedSharding(mesh, _partition_spec(flat_axes.get(path), leaf.shape, mesh.shape))
        except ShardingError as error:
            problems.append(f"  {path} {tuple(leaf.shape)}: {error}")
    if problems:
        sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise ShardingError(
            f"{len(problems)} parameters cannot be placed on the mesh ({sizes}):\n" + "\n".join(problems)
        )
    return unflatten_dict(shardings, sep="/")


def _partition_spec(
    names: tuple[str | None, ...] | None, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    if names is None:
        raise ShardingError("it has no logical axes")
    if len(names) != len(shape):
        raise ShardingError(f"it has {len(shape)} axes but {len(names)} logical names {names}")
    entries: list[MeshAxes] = []
    used: dict[str, str | None] = {}
    for name, length in zip(names, shape, strict=True):
        axes = tuple(axis for axis in mesh_axes(name) if sizes.get(axis, 1) > 1)
        if name in WHOLE_IF_UNEVEN and length % math.prod(sizes[axis] for axis in axes):
            axes = ()
        for axis in axes:
            if axis in used:
                raise ShardingError(f"axes {used[axis]!r} and {name!r} would both be split over mesh axis {axis!r}")
            used[axis] = name
        ways = math.prod(sizes[axis] for axis in axes)
        if length % ways:
            raise ShardingError(
                f"axis {name!r} of length {length} does not divide over {' x '.join(axes)} = {ways}; "
                f"{_suggestion(length, ways, axes)}"
            )
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)


def _suggestion(length: int, ways: int, axes: tuple[str, ...]) -> str:
    padded = -(-length // ways) * ways
    return f"use {'/'.join(axes)} {math.gcd(length, ways)}, or pad the axis to {padded}"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How every array of a batch is placed: its rows are split, its other axes are whole."""
    return NamedSharding(mesh, PartitionSpec(_present(ROW_AXES, mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def row_ways(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in _present(ROW_AXES, mesh))


def _present(axes: MeshAxes, mesh: Mesh) -> tuple[str, ...]:
    given = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return tuple(axis for axis in given if axis in mesh.shape)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Makes the model's logical constraints mean this mesh, for everything traced inside.

    `jax.set_mesh` and not `with mesh:`, under which Flax drops every logical constraint without a word.
    """
    rules = tuple((name, _present(axes, mesh) or None) for name, axes in RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield mesh
