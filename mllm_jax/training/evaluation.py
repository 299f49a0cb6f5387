"""The held-out loss during training."""

import contextlib
from collections.abc import Callable

import jax
from jaxtyping import Array

from data_pipelines.batch import Batch
from mllm_jax.training.ingredients import Feed
from mllm_jax.training.state import TrainState


def held_out_loss(
    step: Callable[[TrainState, Batch], tuple[Array, Array]], state: TrainState, feed: Feed, batches: int
) -> float:
    """Mean loss per supervised token (nats) over the first `batches` batches of `feed`, which is closed.

    Raises:
        ValueError: nothing in these batches is supervised.
    """
    losses = weights = 0.0
    with contextlib.closing(feed):
        for _ in range(batches):
            loss, weight = jax.device_get(step(state, next(feed).batch))
            losses, weights = losses + float(loss), weights + float(weight)
    if weights == 0.0:
        raise ValueError(f"the validation mixture gave no supervised token in {batches} batches")
    return losses / weights
