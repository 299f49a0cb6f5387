"""Mixture of experts: every token goes through a few of many feed-forward layers, which a router chooses for it.

Without capacity every token reaches the experts chosen for it ("dropless"): tokens are sorted by expert and multiplied
group by group. With capacity every expert takes the same number of tokens of a row and the rest pass by, which keeps
every shape the same whatever the router does.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from beartype import beartype
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, jaxtyped
from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from mllm_jax.models.layers.activations import ACTIVATIONS, ActivationName
from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.projection import Projection

ROUTING = "routing"
"""The collection of variables in which every layer leaves its `RouterSums`."""


class ExpertsConfig(Config):
    """Feed-forward layers among which a router chooses for every token (https://arxiv.org/abs/2101.03961)."""

    count: int = Field(gt=1)
    """Experts in a layer."""
    chosen: int = Field(gt=0)
    """Experts that a token goes through."""
    width: int = Field(gt=0)
    """Inner width of one expert."""
    renormalise: bool = True
    """The weights of a token's experts add up to one; else they are their share of the router's softmax."""
    routing: Literal["dropless", "capacity"] = "dropless"
    """Whether every token reaches its experts, or each expert takes so many of a row and no more."""
    capacity_factor: float = Field(default=1.25, gt=0)
    """With capacity: tokens of a row that an expert takes, in units of an even share."""

    @model_validator(mode="after")
    def _consistent(self) -> "ExpertsConfig":
        if self.chosen > self.count:
            raise ValueError(f"chosen {self.chosen} exceeds count {self.count}")
        return self

    def capacity(self, tokens: int) -> int:
        """Tokens that an expert takes of a row of `tokens`."""
        return min(tokens, math.ceil(self.capacity_factor * tokens * self.chosen / self.count))


NO_EXPERT = -1
"""In place of an expert's number, for padding: no expert takes it."""


class RouterSums(NamedTuple):
    """What the auxiliary losses need of a router, summed over the tokens that are not padding."""

    assigned: Float[Array, " E"]
    """Tokens for which an expert was chosen."""
    probability: Float[Array, " E"]
    squared_normaliser: Float[Array, ""]
    """Square of the logarithm of the softmax's normaliser."""
    tokens: Float[Array, ""]


def total_sums(left: Any) -> RouterSums:
    """The sums of all layers together, from what they left in the collection `ROUTING`.

    Raises:
        ValueError: no layer left any.
    """
    layers = jax.tree.leaves(left, is_leaf=lambda node: isinstance(node, RouterSums))
    if not layers:
        raise ValueError(
            "no router left its sums: losses of routers are not collected from layers with other blocks between them; "
            "set objective.balance_weight and objective.router_weight to 0"
        )
    ranks = RouterSums(1, 1, 0, 0)  # type: ignore[arg-type]
    return jax.tree.map(
        lambda rank, *parts: sum(jnp.sum(part, axis=tuple(range(part.ndim - rank))) for part in parts), ranks, *layers
    )


def balance_loss(sums: RouterSums) -> Float[Array, ""]:
    """How unevenly experts are chosen, over all layers together (https://arxiv.org/abs/2101.03961, equations 4 to 6).

    `ExpertsConfig.chosen` when tokens are shared evenly.
    """
    tokens = jnp.maximum(sums.tokens, 1.0)
    return jnp.sum(sums.assigned / tokens * (sums.probability / tokens)) * sums.assigned.shape[0]


def normaliser_loss(sums: RouterSums) -> Float[Array, ""]:
    """Mean square of the logarithm of the routers' normalisers (https://arxiv.org/abs/2202.08906, equation 5)."""
    return sums.squared_normaliser / jnp.maximum(sums.tokens, 1.0)


class Choice(NamedTuple):
    experts: Int[Array, "B T k"]
    weights: Float[Array, "B T k"]


class ExpertKernels(nn.Module):
    """The matrices of all experts for one of their layers."""

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]
    """Logical names."""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> Float[Array, "E inputs outputs"]:
        initializer = named(nn.initializers.truncated_normal(1.0 / math.sqrt(self.shape[1])), *self.axes)
        return self.param("kernel", initializer, self.shape, self.param_dtype).astype(self.dtype)


class Experts(nn.Module):
    config: ExpertsConfig
    activation: ActivationName
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @jaxtyped(typechecker=beartype)
    def __call__(self, hidden: Float[Array, "B T D"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        config, width = self.config, hidden.shape[-1]
        formats = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        router = Projection((config.count,), ("embed",), (None,), name="router", **formats)
        choice = self._choose(router(hidden).astype(jnp.float32), segment_ids)
        inward, outward = ("experts", "embed", "feed_forward"), ("experts", "feed_forward", "embed")
        kernels = (
            ExpertKernels((config.count, width, config.width), inward, name="gate", **formats)(),
            ExpertKernels((config.count, width, config.width), inward, name="up", **formats)(),
            ExpertKernels((config.count, config.width, width), outward, name="down", **formats)(),
        )
        run = dropless if config.routing == "dropless" else within_capacity
        return run(hidden.astype(self.dtype), choice, kernels, config, self.activation)

    def _choose(self, logits: Float[Array, "B T E"], segment_ids: Int[Array, "B T"]) -> Choice:
        probabilities = jax.nn.softmax(logits, axis=-1)
        weights, experts = jax.lax.top_k(probabilities, self.config.chosen)
        if self.config.renormalise:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        real = (segment_ids > 0).astype(jnp.float32)[..., None]
        assigned = jnp.sum(jax.nn.one_hot(experts, self.config.count), axis=2)
        sums = RouterSums(
            assigned=jnp.sum(assigned * real, axis=(0, 1)),
            probability=jnp.sum(probabilities * real, axis=(0, 1)),
            squared_normaliser=jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1, keepdims=True)) * real),
            tokens=jnp.sum(real),
        )
        self.sow(ROUTING, "sums", sums, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return Choice(jnp.where(real > 0, experts, NO_EXPERT), weights)


Kernels = tuple[Float[Array, "E D F"], Float[Array, "E D F"], Float[Array, "E F D"]]


def within_capacity(
    hidden: Float[Array, "B T D"], choice: Choice, kernels: Kernels, config: ExpertsConfig, activation: ActivationName
) -> Float[Array, "B T D"]:
    """Each expert takes at most `capacity` tokens of a row; earlier tokens, and first choices, come first."""
    tokens = hidden.shape[1]
    capacity = config.capacity(tokens)
    chosen = jax.nn.one_hot(choice.experts, config.count, dtype=jnp.int32)
    # Every first choice of a row is ranked before any second choice.
    in_order = jnp.swapaxes(chosen, 1, 2).reshape(hidden.shape[0], -1, config.count)
    rank = (jnp.cumsum(in_order, axis=1) - in_order).reshape(hidden.shape[0], config.chosen, tokens, config.count)
    place = jnp.sum(jnp.swapaxes(rank, 1, 2) * chosen, axis=-1)
    # A place past the capacity is no place at all: its one-hot is zero.
    slots = chosen[..., None] * jax.nn.one_hot(place, capacity)[:, :, :, None]
    combine = jnp.einsum("btkec,btk->btec", slots, choice.weights.astype(slots.dtype))
    dispatch = jnp.sum(slots, axis=2).astype(hidden.dtype)
    gate, up, down = kernels
    taken = jnp.einsum("btec,btd->ebcd", dispatch, hidden)
    taken = nn.with_logical_constraint(taken, ("experts_activation", "rows_of_experts", None, None))
    inner = ACTIVATIONS[activation](jnp.einsum("ebcd,edf->ebcf", taken, gate)) * jnp.einsum("ebcd,edf->ebcf", taken, up)
    given = jnp.einsum("ebcf,efd->ebcd", inner, down)
    return jnp.einsum("btec,ebcd->btd", combine.astype(hidden.dtype), given)


def dropless(
    hidden: Float[Array, "B T D"], choice: Choice, kernels: Kernels, config: ExpertsConfig, activation: ActivationName
) -> Float[Array, "B T D"]:
    """Every token through all experts chosen for it.

    On a mesh each group of devices that holds a share of the experts reads the tokens of the whole group, runs its own
    experts and adds the results up: no token crosses to another row's devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = _spec("rows", "tokens", None)
    if mesh.empty or not _divides(rows, hidden.shape, mesh.shape):
        return _sorted_by_expert(hidden, choice, kernels, jnp.int32(0), activation)
    expert_axes, inner_axes = (_axes(_spec(name)[0]) for name in ("experts_activation", "feed_forward_activation"))
    spread = tuple(axis for axis in expert_axes if axis in _axes(rows[0]))

    def local(hidden: Array, choice: Choice, kernels: Kernels) -> Array:
        first = jnp.int32(0)
        for axis in expert_axes:
            first = first * mesh.shape[axis] + jax.lax.axis_index(axis)
        first = first * kernels[0].shape[0]
        if spread:
            hidden, choice = jax.tree.map(lambda part: jax.lax.all_gather(part, spread, tiled=True), (hidden, choice))
        given = _sorted_by_expert(hidden, choice, kernels, first, activation)
        summed = tuple(axis for axis in (*expert_axes, *inner_axes) if axis not in spread)
        given = jax.lax.psum(given, summed) if summed else given
        return jax.lax.psum_scatter(given, spread, tiled=True) if spread else given

    kernel_specs = (_spec("experts_activation", None, "feed_forward_activation"),) * 2 + (
        _spec("experts_activation", "feed_forward_activation", None),
    )
    specs = (rows, Choice(rows, rows), kernel_specs)  # type: ignore[arg-type]
    run = jax.shard_map(local, in_specs=specs, out_specs=rows, check_vma=False)
    return run(hidden, choice, kernels)


def _sorted_by_expert(
    hidden: Float[Array, "B T D"], choice: Choice, kernels: Kernels, first: Int[Array, ""], activation: ActivationName
) -> Float[Array, "B T D"]:
    """The part of the result that the experts numbered from `first` on, whose kernels these are, contribute."""
    gate, up, down = kernels
    count, chosen, width = gate.shape[0], choice.experts.shape[-1], hidden.shape[-1]
    own = choice.experts.reshape(-1) - first
    # Choices of experts elsewhere are sorted to the end, past all groups.
    own = jnp.where((own >= 0) & (own < count), own, count)
    order = jnp.argsort(own, stable=True)
    sizes = jnp.bincount(own, length=count + 1)[:count].astype(jnp.int32)
    tokens = jnp.take(hidden.reshape(-1, width), order // chosen, axis=0)
    inner = ACTIVATIONS[activation](jax.lax.ragged_dot(tokens, gate, sizes)) * jax.lax.ragged_dot(tokens, up, sizes)
    given = jax.lax.ragged_dot(inner, down, sizes)
    share = jnp.where(own[order] < count, choice.weights.reshape(-1)[order], 0).astype(given.dtype)
    given = jnp.where(share[:, None] == 0, 0, given) * share[:, None]
    summed = jnp.zeros((hidden.shape[0] * hidden.shape[1], width), given.dtype).at[order // chosen].add(given)
    return summed.reshape(hidden.shape)


def _spec(*names: str | None) -> PartitionSpec:
    """Where the axes of an array lie on the mesh, by the logical rules in force."""
    spec = nn.logical_to_mesh_axes(names)
    return PartitionSpec() if spec is None else spec


def _divides(spec: PartitionSpec, shape: tuple[int, ...], sizes: Mapping[str, int]) -> bool:
    """Whether an array can be cut as the spec says; false where no rules are in force."""
    ways = [math.prod(sizes[axis] for axis in _axes(entry)) for entry in spec]
    return bool(ways) and all(length % count == 0 for length, count in zip(shape, ways, strict=False))


def _axes(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
