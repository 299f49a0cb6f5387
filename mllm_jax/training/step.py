"""The training step and the evaluation step: pure functions of state and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from data_pipelines.batch import Batch
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.averages import AverageConfig, averaged
from mllm_jax.training.rate_groups import Rates
from mllm_jax.training.state import TrainState, merge
from mllm_jax.training.weighting import Weighting, weighted_by


class Objective(Protocol):
    """From all parameters and a batch to the *sum* over the batch of loss times loss weight."""

    def __call__(self, parameters: ParameterTree, batch: Batch, key: Array | None = None) -> Float[Array, ""]:
        """`key` is of the random numbers of a training step; None where nothing is left to chance."""


Metrics = dict[str, Array]
"""Scalars; f32 or i32."""


class StepOptions(NamedTuple):
    """How a step is done; the defaults are the plain one."""

    accumulate: int = 1
    """Into how many parts the rows are cut, one after another, to save memory."""
    weighting: Weighting = "token"
    """How much a supervised token counts."""
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

    The loss is the objective's sum over the global batch divided by the sum of the loss weights of the global batch,
    so it and its gradient depend neither on accumulation nor on packing nor on the mesh.

    Args:
        objective: sums the weighted loss over a batch.
        optimizer: of the trainable parameters.
        rates: the learning rates that `optimizer` uses, for the metrics.
        options: how the step is done.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        counts = batch_counts(batch)
        batch = weighted_by(options.weighting, batch)
        total_weight = supervised_weight(batch)

        key = jax.random.fold_in(jax.random.key(options.seed), state.step)

        def loss_of(trainable: ParameterTree, part: Batch, key: Array) -> Float[Array, ""]:
            return objective(merge(trainable, state.frozen), part, key) / total_weight

        loss, gradients = _accumulated(jax.value_and_grad(loss_of), state.trainable, batch, key, options.accumulate)
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
        return new_state, metrics | _rate_metrics(rates, state.step) | counts

    return train_step


def _rate_metrics(rates: Rates, step: Array) -> Metrics:
    return {f"learning_rate/{group}" if group else "learning_rate": rate for group, rate in rates.at(step).items()}


def _accumulated(
    value_and_gradient: Callable[[ParameterTree, Batch, Array], tuple[Array, ParameterTree]],
    trainable: ParameterTree,
    batch: Batch,
    key: Array,
    parts: int,
) -> tuple[Array, ParameterTree]:
    if parts == 1:
        return value_and_gradient(trainable, batch, key)

    def add(total: tuple[Array, ParameterTree], part: tuple[Batch, Array]) -> tuple[tuple[Array, ParameterTree], None]:
        return jax.tree.map(jnp.add, total, value_and_gradient(trainable, *part)), None

    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trainable))
    total, _ = jax.lax.scan(add, zero, (micro_batches(batch, parts), jax.random.split(key, parts)))
    return total


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


def supervised_weight(batch: Batch) -> Float[Array, ""]:
    """The sum of the loss weights of the global batch; 1 where nothing is supervised, so that the loss is 0."""
    total = jnp.sum(batch.loss_weights, dtype=jnp.float32)
    return jnp.where(total > 0, total, 1.0)


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


def make_evaluation_step(objective: Objective) -> Callable[[TrainState, Batch], tuple[Array, Array]]:
    """A function from state and batch to (sum of weighted loss, sum of loss weights)."""

    def evaluation_step(state: TrainState, batch: Batch) -> tuple[Array, Array]:
        total = objective(merge(state.result, state.frozen), batch)
        return total, jnp.sum(batch.loss_weights, dtype=jnp.float32)

    return evaluation_step


def compile_train_step(step: TrainStep, state_shardings: Any, batch_sharding: Any) -> TrainStep:
    """`step` under jit: the state keeps its shardings and its buffers are reused."""
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
    )
