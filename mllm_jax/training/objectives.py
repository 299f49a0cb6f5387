"""Training objectives: from parameters and a batch to a sum of weighted losses."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int32
from pydantic import Field

from data_pipelines.batch import Batch
from data_pipelines.config_class import Config
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.step import Objective


class ObjectiveConfig(Config):
    """Next-token prediction."""

    kind: Literal["next_token"] = "next_token"
    chunk_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a row whose logits exist at one time, to save memory with a large vocabulary: the logits are made
    twice, but never more than [rows, chunk_tokens, vocabulary] of them. Must divide the row length; null makes them
    all at once."""


def next_token_objective(model: nn.Module, config: ObjectiveConfig) -> Objective:
    """The summed loss of predicting each supervised token from those before it; `model` is a `Multimodal`."""

    def objective(parameters: ParameterTree, batch: Batch) -> Float[Array, ""]:
        variables = {"params": parameters}
        hidden: Any = nn.apply(_hidden, model)(variables, batch)
        logits_of = partial(model.apply, variables, method="logits")
        if config.chunk_tokens is None:
            logits: Any = logits_of(hidden)
            return weighted_cross_entropy(logits, batch.targets, batch.loss_weights)
        return _chunked(logits_of, hidden, batch, config.chunk_tokens)

    return objective


def _hidden(model: Any, batch: Batch) -> Float[Array, "B T D"]:
    features = model.encode_images(batch.images, batch.image_mask)
    media = model.media(features, batch.image_index, batch.segment_ids)
    embeddings = model.embed(batch.tokens, features, batch.image_index)
    return model.decode(embeddings, batch.segment_ids, batch.positions, media=media)[0]


def _chunked(logits_of: Any, hidden: Float[Array, "B T D"], batch: Batch, chunk: int) -> Float[Array, ""]:
    rows, length, _ = hidden.shape
    if length % chunk:
        raise ValueError(f"objective.chunk_tokens {chunk} does not divide the row length {length}")

    def cut(array: Array) -> Array:
        return jnp.swapaxes(array.reshape(rows, length // chunk, chunk, *array.shape[2:]), 0, 1)

    @jax.checkpoint
    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        states, targets, weights = part
        return total + weighted_cross_entropy(logits_of(states), targets, weights), None

    parts = (cut(hidden), cut(batch.targets), cut(batch.loss_weights))
    return jax.lax.scan(add, jnp.zeros((), jnp.float32), parts)[0]


def weighted_cross_entropy(
    logits: Float[Array, "B T V"], targets: Int32[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
    """Sum over all tokens of weight x negative log-likelihood of the target, in nats, computed in f32."""
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (normaliser - chosen))
