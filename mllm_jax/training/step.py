"""The training step and the evaluation step: pure functions of state and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from data_pipelines.batch import Batch
from mllm_jax.parallel.compiler_options import compiler_options
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.averages import AverageConfig, averaged
from mllm_jax.training.objective import Losses, Objective
from mllm_jax.training.rate_groups import Rates
from mllm_jax.training.state import TrainState, merge

Metrics = dict[str, Array]
"""Scalars; f32 or i32."""


class StepOptions(NamedTuple):
    """How a step is done; the defaults are the plain one."""

    accumulate: int = 1
    """Into how many parts the rows are cut, one after another, to save memory."""
    average: AverageConfig | None = None
    """Of the running average; None: there is none."""
    seed: int = 0
    """Of the random numbers, which differ from step to step."""


PLAIN = StepOptions()

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, rates: Rates, options: StepOptions = PLAIN
) -> TrainStep:
    """The step of a stage.

    The loss is the objective's sum over the global batch divided by its weight of the global batch, so it and its
    gradient depend neither on accumulation nor on packing nor on the mesh; it is 0 where the weight is 0.

    Args:
        objective: sums the weighted loss over a batch.
        optimizer: of the trainable parameters.
        rates: the learning rates that `optimizer` uses, for the metrics.
        options: how the step is done.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        counts = batch_counts(batch)
        batch = objective.weighed(batch)
        weight = objective.weight(batch)
        total_weight = jnp.where(weight > 0, weight, 1.0)
        key = jax.random.fold_in(jax.random.key(options.seed), state.step)

        def loss_of(trainable: ParameterTree, part: Batch, key: Array) -> tuple[Array, Metrics]:
            losses = objective.losses(merge(trainable, state.frozen), part, key)
            return losses.total / total_weight, {name: each / total_weight for name, each in losses.parts.items()}

        learn = jax.value_and_grad(loss_of, has_aux=True)
        (loss, parts), gradients = _accumulated(learn, state.trainable, batch, key, options.accumulate)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        average = state.average
        if options.average is not None:
            average = averaged(options.average, state.step, average, trainable)
        new_state = state.replace(
            step=state.step + 1, trainable=trainable, optimizer_state=optimizer_state, average=average
        )
        metrics = {
            "loss": loss,
            "gradient_norm": optax.global_norm(gradients),
        }
        return new_state, metrics | parts | _rate_metrics(rates, state.step) | counts

    return train_step


def _rate_metrics(rates: Rates, step: Array) -> Metrics:
    return {f"learning_rate/{group}" if group else "learning_rate": rate for group, rate in rates.at(step).items()}


def _accumulated(
    value_and_gradient: Callable[[ParameterTree, Batch, Array], Any],
    trainable: ParameterTree,
    batch: Batch,
    key: Array,
    parts: int,
) -> Any:
    """The sum over parts of the batch of what `value_and_gradient` gives for each."""
    if parts == 1:
        return value_and_gradient(trainable, batch, key)

    cut = micro_batches(batch, parts), jax.random.split(key, parts)
    shapes = jax.eval_shape(value_and_gradient, trainable, *jax.tree.map(lambda array: array[0], cut))

    def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_gradient(trainable, *part)), None

    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zero, cut)[0]


def micro_batches(batch: Batch, parts: int) -> Batch:
    """Cuts B rows into [parts, B / parts], every `parts`-th row into the same part.

    Rows are dealt out like this so that each device keeps its own rows and nothing moves.

    Raises:
        ValueError: the rows do not divide.
    """
    rows = batch.tokens.shape[0]
    if rows % parts:
        raise ValueError(f"a batch of {rows} rows cannot be cut into {parts} equal parts")

    def cut(array: Array) -> Array:
        parted = jnp.swapaxes(array.reshape(rows // parts, parts, *array.shape[1:]), 0, 1)
        return nn.with_logical_constraint(parted, (None, "rows", *(None,) * (array.ndim - 1)))

    return jax.tree.map(cut, batch)


def batch_counts(batch: Batch) -> Metrics:
    """What a batch holds, i32: tokens that are not padding, supervised tokens, images, all places for tokens.

    `attended` f32 counts the pairs of tokens in causal attention, each token with itself and those before it in its
    segment; what prefix attention sees besides is not counted.
    """
    real = batch.segment_ids > 0
    return {
        "tokens": jnp.sum(real, dtype=jnp.int32),
        "supervised_tokens": jnp.sum(batch.loss_weights > 0, dtype=jnp.int32),
        "images": jnp.sum(batch.image_mask, dtype=jnp.int32),
        "token_places": jnp.asarray(batch.tokens.size, jnp.int32),
        "attended": jnp.sum(jnp.where(real, batch.positions + 1, 0), dtype=jnp.float32),
    }


def make_evaluation_step(objective: Objective) -> Callable[[TrainState, Batch], tuple[Losses, Array]]:
    """A function from state and batch to (sums of the losses, by what they are divided)."""

    def evaluation_step(state: TrainState, batch: Batch) -> tuple[Losses, Array]:
        batch = objective.weighed(batch)
        return objective.losses(merge(state.result, state.frozen), batch, None), objective.weight(batch)

    return evaluation_step


def compile_train_step(step: TrainStep, state_shardings: Any, batch_sharding: NamedSharding) -> TrainStep:
    """`step` under jit: the state keeps its shardings and its buffers are reused; with the options of its platform."""
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
        compiler_options=compiler_options(cast(Mesh, batch_sharding.mesh)),
    )
