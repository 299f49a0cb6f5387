"""Running averages of weights, which score better than the weights that wander about them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.parallel.rules import ParameterTree


class AverageConfig(Config):
    """An exponential moving average of what trains. It is what validation measures and what the stage leaves: to the
    next stage, to export and to every other reader; the weights themselves are kept to go on from."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """Share of the average that stays at each step. Over the first steps it is lower, (1 + step) / (10 + step), so
    that the start is soon forgotten."""


def averaged(
    config: AverageConfig, step: Int32[Array, ""], average: ParameterTree, parameters: ParameterTree
) -> ParameterTree:
    """The average after one more step; `step` counts those before it."""
    decay = jnp.minimum(config.decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), average, parameters)
