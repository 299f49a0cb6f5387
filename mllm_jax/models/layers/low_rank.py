"""Low-rank adapters: beside the kernel of a linear map, two small ones that train in its place.

LoRA (https://arxiv.org/abs/2106.09685), rank-stabilised LoRA (https://arxiv.org/abs/2312.03732) and DoRA
(https://arxiv.org/abs/2402.09353). Adapters lie over a model: their parameters stand beside the kernels in the same
tree, and a model is run with them inside of `adapted`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.models.layers.projection import AxisNames, Projection, Sides, float_kernel, sides_of

DROPOUT = "adapter_dropout"
"""The stream of random numbers that dropout draws from; a model that is run without it drops nothing."""

ADAPTER = "adapter"
DOWN, UP, MAGNITUDE = "down", "up", "magnitude"
"""Parameters of an adapter: from the inputs to the rank, from there to the outputs, and the length of each output's
kernel (DoRA)."""


class LowRankConfig(Config):
    """Low-rank adapters of the linear maps that `targets` choose."""

    kind: Literal["low_rank"] = "low_rank"
    targets: tuple[str, ...] = Field(min_length=1)
    """Path patterns of linear maps, such as `decoder/**/attention/query`."""
    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16.0, gt=0)
    """What an adapter adds is multiplied by alpha / rank."""
    rank_stabilised: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that a larger rank does not slow learning down."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that a training step leaves out."""
    decomposed: bool = False
    """Let the length of each output's kernel train by itself (DoRA)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


Adapters = Mapping[str, LowRankConfig]
"""Path of a linear map -> the adapter that stands beside its kernel."""

NO_ADAPTERS: Adapters = MappingProxyType({})


def is_adaptable(axes: AxisNames) -> bool:
    """Whether an adapter can stand beside a kernel of these axes: one map from or to hidden states in each layer."""
    return sides_of(axes) is not None and "experts" not in axes


class AdapterShape(NamedTuple):
    """One parameter of an adapter."""

    shape: tuple[int, ...]
    axes: AxisNames


def adapter_shapes(config: LowRankConfig, shape: tuple[int, ...], axes: AxisNames) -> dict[str, AdapterShape]:
    """What an adapter puts beside a kernel, by name.

    Args:
        config: of the adapter.
        shape: of the kernel.
        axes: logical names of the kernel's axes.
    """
    sides = cast(Sides, sides_of(axes))

    def joined(*parts: tuple[int, ...] | None) -> AdapterShape:
        sizes = [(config.rank,) if part is None else tuple(shape[at] for at in part) for part in parts]
        named = [() if part is None else tuple(axes[at] for at in part) for part in parts]
        rank = None if any("embed" in part for part in named) else "rank"
        names = [(rank,) if part is None else name for part, name in zip(parts, named, strict=True)]
        return AdapterShape(sum(sizes, ()), sum(names, ()))

    found = {DOWN: joined(sides.stacked, sides.inputs, None), UP: joined(sides.stacked, None, sides.outputs)}
    return found | {MAGNITUDE: joined(sides.stacked, sides.outputs)} if config.decomposed else found


def initial_adapter(
    config: LowRankConfig, kernel: Float[Array, "..."], axes: AxisNames, key: Array
) -> dict[str, Float[Array, "..."]]:
    """An adapter that changes nothing yet: `up` is zero, `down` is drawn as peft draws it, `magnitude` is measured.

    Args:
        config: of the adapter.
        kernel: beside which it stands.
        axes: logical names of the kernel's axes.
        key: of the random numbers.
    """
    shapes, sides = adapter_shapes(config, kernel.shape, axes), cast(Sides, sides_of(axes))
    bound = 1 / math.sqrt(math.prod(kernel.shape[at] for at in sides.inputs))
    found = {
        DOWN: jax.random.uniform(key, shapes[DOWN].shape, jnp.float32, -bound, bound),
        UP: jnp.zeros(shapes[UP].shape, jnp.float32),
    }
    return found | {MAGNITUDE: _lengths(kernel, sides.inputs)} if config.decomposed else found


def merged_kernel(
    config: LowRankConfig, kernel: Float[Array, "..."], adapter: Mapping[str, Float[Array, "..."]], axes: AxisNames
) -> Float[Array, "..."]:
    """The kernel that computes alone what `kernel` and its adapter compute together, in the kernel's dtype."""
    sides = cast(Sides, sides_of(axes))
    product = partial(jnp.tensordot, axes=1)
    for _ in sides.stacked:
        product = jax.vmap(product)
    merged = kernel.astype(jnp.float32) + config.scale * product(adapter[DOWN], adapter[UP])
    if config.decomposed:
        ratio = adapter[MAGNITUDE] / _lengths(merged, sides.inputs)
        merged = merged * jnp.expand_dims(ratio, sides.inputs)
    return merged.astype(kernel.dtype)


def _lengths(kernel: Float[Array, "..."], inputs: tuple[int, ...]) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=inputs))


@contextlib.contextmanager
def adapted(adapters: Adapters) -> Iterator[None]:
    """Inside of it, the linear maps of every model that runs add what their adapters make of their inputs."""
    with nn.intercept_methods(partial(_with_adapter, adapters)):
        yield


def _with_adapter(
    adapters: Adapters, run: Callable[..., Array], args: tuple[Any, ...], kwargs: Any, context: Any
) -> Array:
    module = context.module
    if not isinstance(module, Projection) or context.method_name != "__call__":
        return run(*args, **kwargs)
    config = adapters.get("/".join(module.path))
    outputs = run(*args, **kwargs)
    if config is None:
        return outputs
    variables: Any = module.variables["params"]
    adapter, contracted = variables[ADAPTER], len(module.input_axes)
    inputs = _dropped(config, module, args[0].astype(module.dtype))
    low = jnp.tensordot(inputs, adapter[DOWN].astype(module.dtype), axes=contracted)
    added = config.scale * jnp.tensordot(low, adapter[UP].astype(module.dtype), axes=1)
    if not config.decomposed:
        return outputs + added
    kernel = float_kernel(variables, jnp.float32)
    whole = kernel + config.scale * jnp.tensordot(adapter[DOWN], adapter[UP], axes=1)
    # The length is read, not trained through (section 4.3 of the paper).
    length = jax.lax.stop_gradient(_lengths(whole, tuple(range(contracted))))
    ratio = (adapter[MAGNITUDE] / length).astype(module.dtype)
    plain = jnp.tensordot(inputs, kernel.astype(module.dtype), axes=contracted)
    return outputs + (ratio - 1) * plain + ratio * added


def _dropped(config: LowRankConfig, module: Projection, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    if not config.dropout or not module.has_rng(DROPOUT):
        return inputs
    kept = jax.random.bernoulli(module.make_rng(DROPOUT), 1 - config.dropout, inputs.shape)
    return jnp.where(kept, inputs / (1 - config.dropout), 0)
