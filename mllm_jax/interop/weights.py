"""Weights in and out through a family's table, a parameter at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.interop.adjustments import Adjustment
from mllm_jax.interop.rules import Shape, Table, Tensor, cut, pieces, tensors, whole_shape
from mllm_jax.interop.safetensors_folder import FLOATS, SafetensorsFolder, StoredTensor, WeightsError, write_folder

Tree = dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    parameters: Tree
    """Nested dict of arrays, in the formats of the abstract parameters."""
    adjusted: tuple[str, ...]
    """One sentence for every parameter whose size was changed on the way."""
    ignored: tuple[str, ...]
    """Names of tensors in the folder that the family knows and our model does not use."""


def load(
    folder: str | Path,
    table: Table,
    abstract: Tree,
    shardings: Tree | None = None,
    adjustments: Mapping[str, Adjustment] | None = None,
) -> Loaded:
    """Reads a folder's tensors into the parameters that `abstract` describes.

    One parameter (a stack of all layers counts as one) is in host memory at a time; with `shardings` (same tree) it
    goes straight to its devices, else to the default device. Parameters may be scanned or not.

    Raises:
        WeightsError: naming every missing, unexpected, misshaped or quantised tensor at once.
        FileNotFoundError: where there are no weights.
    """
    adjustments = adjustments or {}
    placed = flatten_dict(shardings, sep="/") if shardings is not None else {}
    formats = {path: np.dtype(leaf.dtype) for path, leaf in flatten_dict(abstract, sep="/").items()}
    with SafetensorsFolder(Path(folder)) as source:
        reading = Reading(source, table, abstract, adjustments)
        parameters = {
            path: _place(array.astype(formats[path], copy=False), placed.get(path)) for path, array in reading.arrays()
        }
    adjusted = tuple(f"{path}: {adjustment.describe()}" for path, adjustment in adjustments.items())
    return Loaded(unflatten_dict(parameters, sep="/"), adjusted, reading.ignored)


class Reading:
    """A folder whose tensors were found to fit, to be read a parameter at a time in the formats that it stores."""

    def __init__(
        self,
        source: SafetensorsFolder,
        table: Table,
        abstract: Tree,
        adjustments: Mapping[str, Adjustment] | None = None,
    ):
        """Checks every tensor; raises WeightsError as `load`. `source` must be open."""
        self._source, self._adjustments = source, adjustments or {}
        leaves = flatten_dict(abstract, sep="/")
        self._shapes = {path: _shape_before(leaf.shape, self._adjustments.get(path)) for path, leaf in leaves.items()}
        before = {path: jax.ShapeDtypeStruct(shape, leaves[path].dtype) for path, shape in self._shapes.items()}
        self._wanted, uncovered = tensors(table, before)
        self._pieces = pieces(self._wanted)
        for name, following in table.continued:
            if {name, following} <= set(source.names()):
                source.join(name, following)
        self._names = _canonical_names(source, table)
        self.ignored = _check(source, table, self._pieces, self._names, uncovered)
        """Names of tensors in the folder that the family knows and our model does not use."""

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the path and the value of every parameter."""
        for path, parts in groupby(self._wanted, key=lambda tensor: tensor.path):
            array = self._assemble(list(parts), self._shapes[path])
            adjustment = self._adjustments.get(path)
            yield path, array if adjustment is None else adjustment.apply(array)

    def _assemble(self, parts: list[Tensor], shape: Shape) -> np.ndarray:
        """One whole parameter on the host."""
        if not parts[0].index:
            return parts[0].layout.to_ours(self._read(parts[0]), shape)
        formats = (self._source.float_dtype(self._names[part.name]) for part in parts)
        stacked = np.empty(shape, np.result_type(*formats))
        for part in parts:
            stacked[part.index] = part.layout.to_ours(self._read(part), shape[len(part.index) :])
        return stacked

    def _read(self, part: Tensor) -> np.ndarray:
        return cut(self._source.read(self._names[part.name]), self._pieces[part.name], part.path)


def _shape_before(shape: Shape, adjustment: Adjustment | None) -> Shape:
    return shape if adjustment is None else adjustment.source_shape(shape)


def _canonical_names(source: SafetensorsFolder, table: Table) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in source.names():
        other = names.setdefault(table.canonical(name), name)
        if other != name:
            raise WeightsError(f"{source.folder} holds {name} and {other}, which are two names of one tensor.")
    return names


def _check(
    source: SafetensorsFolder,
    table: Table,
    wanted: dict[str, list[Tensor]],
    names: dict[str, str],
    uncovered: list[str],
) -> tuple[str, ...]:
    """Compares what is there with what is wanted; returns the names that are rightly left aside."""
    problems = [f"no rule of the family gives our parameter {path}" for path in uncovered]
    for wanted_name, parts in wanted.items():
        shape = whole_shape(parts)
        name = names.get(wanted_name)
        if name is None:
            paths = ", ".join(part.path for part in parts)
            problems.append(f"missing {wanted_name}, shape {list(shape)} (for {paths})")
        elif source.float_dtype(name) is None:
            problems.append(
                f"{name} in {source.file(name)} holds {source.stored_format(name)} numbers, expected one of "
                f"{', '.join(FLOATS)}: quantised weights cannot be loaded"
            )
        elif source.shape(name) != shape:
            found, expected = list(source.shape(name)), list(shape)
            problems.append(f"misshaped {name} in {source.file(name)}: found {found}, expected {expected}")
    others = [name for name in names if name not in wanted]
    copies = {copy for copy, original in table.copies if copy in others and original in wanted.keys() & names.keys()}
    for copy, original in table.copies:
        if copy in copies and not np.array_equal(source.read(names[copy]), source.read(names[original])):
            problems.append(f"{names[copy]} differs from {names[original]}, but the model ties the two")
    unexpected = sorted(names[name] for name in others if not table.ignores(name) and name not in copies)
    problems += [f"unexpected {name} in {source.file(name)}, shape {list(source.shape(name))}" for name in unexpected]
    if problems:
        listed = "\n  ".join(problems)
        raise WeightsError(
            f"The weights in {source.folder} do not fit the model ({len(problems)} problems):\n  {listed}\n"
            "Check that the folder's config.json belongs to these weights and that no architecture setting "
            "overrides it."
        )
    return tuple(sorted(names[name] for name in others))


def _place(array: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def save(
    folder: str | Path,
    table: Table,
    parameters: Tree,
    dtype: Any = None,
    shard_bytes: int = 2 * 1024**3,
) -> None:
    """Writes parameters as the family's tensors into `folder`, sharded with an index when they exceed `shard_bytes`.

    One parameter is in host memory at a time; parameters that the family keeps in one tensor count as one. `dtype` None
    keeps every parameter's own format.

    Raises:
        WeightsError: a parameter that the family has no name for.
    """
    leaves = flatten_dict(parameters, sep="/")
    written, uncovered = tensors(table, leaves)
    if uncovered:
        raise WeightsError(f"The family has no name for these parameters: {', '.join(sorted(uncovered))}.")
    wholes = pieces(written)
    stored = [
        StoredTensor(name, np.dtype(dtype or leaves[parts[0].path].dtype), whole_shape(parts))
        for name, parts in wholes.items()
    ]
    write_folder(Path(folder), _divide(stored, shard_bytes), _arrays(leaves, list(wholes.values()), dtype))


def _divide(stored: list[StoredTensor], shard_bytes: int) -> list[list[StoredTensor]]:
    """Consecutive groups of at most `shard_bytes` (a tensor larger than that stands alone)."""
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in stored:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _arrays(leaves: dict[str, Any], wholes: list[list[Tensor]], dtype: Any) -> Iterator[np.ndarray]:
    for paths, group in groupby(wholes, key=lambda parts: tuple(part.path for part in parts)):
        host = {path: np.asarray(leaves[path]) for path in paths}
        for parts in group:
            theirs = [part.layout.to_theirs(host[part.path][part.index], part.shape) for part in parts]
            whole = theirs[0] if parts[0].joined is None else np.concatenate(theirs, axis=parts[0].joined.axis)
            yield np.ascontiguousarray(whole, dtype=np.dtype(dtype or whole.dtype))
