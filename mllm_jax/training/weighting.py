"""How much a supervised token counts beside those of other examples."""

from typing import Literal

import jax
import jax.numpy as jnp

from data_pipelines.batch import Batch

Weighting = Literal["token", "square_root", "sample"]

_EXPONENTS: dict[Weighting, float] = {"token": 0.0, "square_root": 0.5, "sample": 1.0}


def weighted_by(weighting: Weighting, batch: Batch) -> Batch:
    """The batch with every loss weight divided by a power of the sum of the weights of its segment.

    `token`: all tokens count alike, so that an example counts by its length; `sample`: all examples count alike;
    `square_root`: halfway between (InternVL 2.5, https://arxiv.org/abs/2412.05271).
    """
    exponent = _EXPONENTS[weighting]
    if exponent == 0:
        return batch

    def divided(weights: jax.Array, segments: jax.Array) -> jax.Array:
        totals = jax.ops.segment_sum(weights, segments, num_segments=weights.shape[0] + 1)[segments]
        return jnp.where(totals > 0, weights / jnp.maximum(totals, jnp.finfo(jnp.float32).tiny) ** exponent, 0)

    return batch._replace(loss_weights=jax.vmap(divided)(batch.loss_weights, batch.segment_ids))
