"""Learning rates of their own for groups of parameters, and for the layers of a group."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.patterns import PatternError, choose, leaf_path
from mllm_jax.training.schedules import ScheduleConfig, make_schedule


class RateGroupConfig(Config):
    """Parameters that learn faster or slower than the rest of a stage."""

    parameters: tuple[str, ...] = Field(min_length=1)
    """Path patterns, such as `encoder/**`. A parameter that fits several groups is in the first of them."""
    rate: float = Field(default=1.0, gt=0)
    """Factor of the stage's learning rate."""
    warmup: float | None = Field(default=None, ge=0)
    """Length of the rise from 0: below 1 a fraction of the steps, otherwise a number of steps; null: the stage's."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Every layer learns at this factor of the rate of the layer above it, and what comes before the first layer at
    this factor of the first layer's (https://arxiv.org/abs/2106.08254); what comes after the last has the full rate."""


Factor = float | np.ndarray
"""Of one parameter; an array has one factor for each layer of a stacked one, and broadcasts against it."""


@dataclass(frozen=True)
class Rates:
    """The learning rate of every parameter at every step."""

    schedules: Mapping[str, optax.Schedule]
    """Name of a group -> its learning rate; the rest of the stage is named ''."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Path of a parameter -> its group; all others are in ''."""
    factors: Mapping[str, Factor] = field(default_factory=dict)
    """Path of a parameter -> what multiplies its group's rate; 1 for all others."""

    def at(self, step: jax.Array) -> dict[str, jax.Array]:
        """The rates after `step` steps, by group."""
        return {name: jnp.asarray(schedule(step), jnp.float32) for name, schedule in self.schedules.items()}


def make_rates(
    schedule: ScheduleConfig,
    groups: Mapping[str, RateGroupConfig],
    steps: int,
    trainable: ParameterTree,
    logical_axes: ParameterTree,
) -> Rates:
    """The learning rates of a stage.

    Args:
        schedule: of everything that is in no group.
        groups: name -> what is in it.
        steps: of the stage.
        trainable: parameters that train, as arrays or shapes.
        logical_axes: names of the axes of all parameters.

    Raises:
        PatternError: a group's pattern matches nothing that trains, or nothing is left for a group.
    """
    shapes, axes = flatten_dict(trainable, sep="/"), flatten_dict(logical_axes, sep="/")
    schedules = {"": make_schedule(schedule, steps)}
    group_of: dict[str, str] = {}
    factors: dict[str, Factor] = {}
    for name, group in groups.items():
        warmup = schedule.warmup if group.warmup is None else group.warmup
        own = schedule.model_copy(update={"peak": schedule.peak * group.rate, "warmup": warmup})
        schedules[name] = make_schedule(own, steps)
        members = {path: shapes[path] for path in _chosen(name, group, shapes) if path not in group_of}
        if not members:
            raise PatternError(
                f"groups.{name}.parameters: all that it chooses is in the groups before it; put it before them."
            )
        group_of |= dict.fromkeys(members, name)
        if group.layer_decay < 1:
            factors |= _layer_factors(group.layer_decay, members, shapes, axes)
    return Rates(schedules, group_of, factors)


def _chosen(name: str, group: RateGroupConfig, paths: Collection[str]) -> Collection[str]:
    try:
        return choose(group.parameters, paths)
    except PatternError as error:
        raise PatternError(f"groups.{name}.parameters: {error} Only what trains has a rate.") from None


_UNSTACKED = re.compile(r"^(.*blocks)_(\d+)/")
_STACKED = re.compile(r"^(.*blocks)/")
_AFTER = ("final_norm", "post_norm", "output", "projection")
"""What stands behind a stack of blocks; everything else beside it stands before it."""


def _layer_factors(
    decay: float, members: Mapping[str, Any], shapes: Mapping[str, Any], axes: Mapping[str, tuple[str | None, ...]]
) -> dict[str, Factor]:
    depths = _depths(shapes)
    factors: dict[str, Factor] = {}
    for path, leaf in members.items():
        stacked, single = _STACKED.match(path), _UNSTACKED.match(path)
        if stacked and "layers" in axes[path]:
            axis, depth = axes[path].index("layers"), depths[stacked[1]]
            below = decay ** np.arange(depth, 0, -1, dtype=np.float64)
            factors[path] = below.astype(np.float32).reshape([-1 if at == axis else 1 for at in range(len(leaf.shape))])
        elif single:
            factors[path] = decay ** (depths[single[1]] - int(single[2]))
        else:
            tower, _, rest = path.partition("/")
            depth = max((count for stack, count in depths.items() if stack.startswith(tower + "/")), default=0)
            factors[path] = decay ** (depth + 1) if depth and rest.split("/")[0] not in _AFTER else 1.0
    return factors


def _depths(shapes: Mapping[str, Any]) -> dict[str, int]:
    """Path of a stack of blocks, such as `decoder/blocks` -> its layers."""
    depths: dict[str, int] = {}
    for path, leaf in shapes.items():
        if single := _UNSTACKED.match(path):
            depths[single[1]] = max(depths.get(single[1], 0), int(single[2]) + 1)
        elif stacked := _STACKED.match(path):
            depths[stacked[1]] = leaf.shape[0]
    return depths


def scale_by_rates(rates: Rates) -> optax.GradientTransformation:
    """Multiplies updates, which descend at rate 1, by the rate of each parameter."""

    def init(parameters: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, parameters: Any = None) -> tuple[Any, Any]:
        now = rates.at(state.count)

        def scaled(keys: Any, leaf: jax.Array) -> jax.Array:
            path = leaf_path(keys)
            rate = now[rates.groups.get(path, "")] * rates.factors.get(path, 1.0)
            return leaf * jnp.asarray(rate, leaf.dtype)

        scaled_updates = jax.tree_util.tree_map_with_path(scaled, updates)
        return scaled_updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
