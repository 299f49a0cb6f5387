"""The state of a stage: parameters in two trees, and an optimizer that knows only one of them."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32

from mllm_jax.checkpoint.layout import OBJECTIVE
from mllm_jax.parallel.rules import ParameterTree, replicated
from mllm_jax.training.patterns import choose


class TrainState(struct.PyTreeNode):
    """All that a step changes, and the frozen parameters that it reads."""

    step: Int32[Array, ""]
    """Steps done in this stage."""
    trainable: ParameterTree
    frozen: ParameterTree
    optimizer_state: Any
    """Of the trainable parameters only."""
    average: ParameterTree = struct.field(default_factory=dict)
    """Running average of the trainable parameters; empty in a stage that has none."""

    @property
    def result(self) -> ParameterTree:
        """What the stage has made of the trainable parameters: their average, where it has one."""
        return self.average or self.trainable


def split(parameters: ParameterTree, patterns: tuple[str, ...]) -> tuple[ParameterTree, ParameterTree]:
    """The parameters that `patterns` choose, and the rest; every parameter is in one of the two trees.

    Raises:
        PatternError: a pattern matches no parameter.
    """
    flat = flatten_dict(parameters, sep="/")
    chosen = choose(patterns, flat)
    trainable = {path: leaf for path, leaf in flat.items() if path in chosen}
    frozen = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(trainable, sep="/"), unflatten_dict(frozen, sep="/")


def merge(*trees: ParameterTree) -> ParameterTree:
    """One tree of all leaves; where two trees have the same path, the later one counts."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= flatten_dict(tree, sep="/")
    return unflatten_dict(flat, sep="/")


def abstract_state(
    parameters: ParameterTree,
    shardings: ParameterTree,
    patterns: tuple[str, ...],
    frozen_dtype: jnp.dtype,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    average: bool = False,
) -> TrainState:
    """Shapes, dtypes and shardings of a stage's state; nothing is allocated.

    Args:
        parameters: all parameters, as arrays or `ShapeDtypeStruct`.
        shardings: the same tree of shardings.
        patterns: which of them train.
        frozen_dtype: in which the others of the model are kept.
        optimizer: whose state takes the shardings of the parameters it is about.
        mesh: on which scalars are replicated.
        average: whether the state has a running average.
    """
    described = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), parameters, shardings
    )
    trainable, frozen = split(described, patterns)
    # What an objective owns is compared with what trains, and may be no less exact.
    narrowed = {part: jax.tree.map(lambda leaf: leaf.update(dtype=frozen_dtype), tree) for part, tree in frozen.items()}
    frozen = narrowed | {part: tree for part, tree in frozen.items() if part == OBJECTIVE}
    everywhere = replicated(mesh)
    parameters_by_path = flatten_dict(trainable, sep="/")

    def placed(keys: tuple[Any, ...], leaf: Any) -> Any:
        parameter = parameters_by_path.get(_parameter_path(keys))
        return leaf.update(sharding=everywhere if parameter is None else _sharding_beside(parameter, leaf.shape))

    optimizer_state = jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, trainable))
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(step, trainable, frozen, optimizer_state, trainable if average else {})


def _parameter_path(keys: tuple[Any, ...]) -> str:
    """The path of the parameter that a leaf of an optimizer's state is about: all keys of dicts at its end."""
    names = itertools.takewhile(lambda key: isinstance(key, jax.tree_util.DictKey), reversed(keys))
    return "/".join(reversed([str(key.key) for key in names]))


def _sharding_beside(parameter: Any, shape: tuple[int, ...]) -> NamedSharding:
    """Of what an optimizer keeps of a parameter: of its own shape, with one axis summed over (Adafactor), or small."""
    sharding, whole = parameter.sharding, tuple(parameter.shape)
    axes = (*sharding.spec, *(None,) * (len(whole) - len(sharding.spec)))
    if shape == whole:
        return sharding
    for left_out in reversed(range(len(whole))):
        if shape == (*whole[:left_out], *whole[left_out + 1 :]):
            return NamedSharding(sharding.mesh, PartitionSpec(*axes[:left_out], *axes[left_out + 1 :]))
    return NamedSharding(sharding.mesh, PartitionSpec())


def shardings_of(abstract: Any) -> Any:
    """The shardings of a tree of arrays or `ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def create_state(
    parameters: ParameterTree, abstract: TrainState, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state at step 0.

    Args:
        parameters: all of them, with the dtypes and shardings that `abstract` gives; the state takes them over.
        abstract: from `abstract_state`.
        optimizer: the same as given there.
    """
    flat = flatten_dict(parameters, sep="/")
    trainable, frozen = (
        unflatten_dict({path: flat[path] for path in flatten_dict(tree, sep="/")}, sep="/")
        for tree in (abstract.trainable, abstract.frozen)
    )
    optimizer_state = jax.jit(optimizer.init, out_shardings=shardings_of(abstract.optimizer_state))(trainable)
    step = jax.device_put(jnp.zeros((), jnp.int32), abstract.step.sharding)
    average = jax.tree.map(jnp.copy, trainable) if abstract.average else {}
    return TrainState(step, trainable, frozen, optimizer_state, average)


@jax.jit
def fingerprint(tree: ParameterTree) -> ParameterTree:
    """A checksum u32[] of the bits of every leaf, taken where the leaf lives.

    Every element's bits are multiplied by an odd number that depends on its place, so that a changed, a moved or
    a swapped element shows.
    """
    return jax.tree.map(_leaf_fingerprint, tree)


def _leaf_fingerprint(leaf: Array) -> Array:
    # Two int4 values share a byte, and bits are only read from whole ones.
    if leaf.dtype.name == "int4":
        leaf = leaf.astype(jnp.int8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, length in enumerate(leaf.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(bits * (place * jnp.uint32(2654435761) * jnp.uint32(2) + jnp.uint32(1)), dtype=jnp.uint32)


class FrozenChangedError(RuntimeError):
    """Frozen parameters that a step has changed."""


def check_unchanged(before: ParameterTree, after: ParameterTree) -> None:
    """Compares two trees of fingerprints.

    Raises:
        FrozenChangedError: some differ; all of them are named.
    """
    expected, found = (flatten_dict(jax.device_get(tree), sep="/") for tree in (before, after))
    changed = [path for path in expected if expected[path] != found.get(path)]
    if changed or expected.keys() != found.keys():
        names = ", ".join(changed or sorted(expected.keys() ^ found.keys()))
        raise FrozenChangedError(f"Frozen parameters were changed by a training step: {names}.")
