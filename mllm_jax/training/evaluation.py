"""The held-out loss during training."""

import contextlib
from collections import Counter
from collections.abc import Callable
from itertools import islice

import jax
from jaxtyping import Array

from data_pipelines.batch import Batch
from mllm_jax.training.ingredients import Feed
from mllm_jax.training.objective import Losses
from mllm_jax.training.state import TrainState


def held_out_losses(
    step: Callable[[TrainState, Batch], tuple[Losses, Array]], state: TrainState, feed: Feed, batches: int | None
) -> dict[str, float]:
    """Means over the first `batches` batches of `feed`, which is closed: the loss (nats), and its parts by name.

    A feed that ends earlier, or with None for `batches`, is measured whole: every record of it once.

    Raises:
        ValueError: nothing in these batches is supervised.
    """
    sums, weights = Counter[str](), 0.0
    with contextlib.closing(feed):
        for loaded in islice(feed, batches):
            losses, weight = jax.device_get(step(state, loaded.batch))
            weights += float(weight)
            sums.update({name: float(each) for name, each in {"loss": losses.total, **losses.parts}.items()})
    if weights == 0.0:
        where = "at all" if batches is None else f"in {batches} batches"
        raise ValueError(f"the validation mixture gave nothing to learn from {where}")
    return {name: total / weights for name, total in sums.items()}
