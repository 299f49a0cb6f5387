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
from mllm_jax.models.layers.experts import ROUTING, balance_loss, normaliser_loss, total_sums
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.step import Objective


class ObjectiveConfig(Config):
    """Next-token prediction."""

    kind: Literal["next_token"] = "next_token"
    chunk_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a row whose logits exist at one time, to save memory with a large vocabulary: the logits are made
    twice, but never more than [rows, chunk_tokens, vocabulary] of them. Must divide the row length; null makes them
    all at once."""
    balance_weight: float = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss of a mixture of experts, which is smallest when its experts share the tokens
    evenly. Part of the training loss only, never of the validation loss."""
    router_weight: float = Field(default=0.0, ge=0)
    """Weight of the square of the routers' normalisers, which keeps their logits small (z-loss, arXiv:2202.08906)."""

    def without_router_losses(self) -> "ObjectiveConfig":
        """The objective that validation measures."""
        return self.model_copy(update={"balance_weight": 0.0, "router_weight": 0.0})


def next_token_objective(model: nn.Module, config: ObjectiveConfig) -> Objective:
    """The summed loss of predicting each supervised token from those before it; `model` is a `Multimodal`.

    Losses of a mixture's routers are added to every supervised token's.
    """

    def objective(parameters: ParameterTree, batch: Batch) -> Float[Array, ""]:
        variables = {"params": parameters}
        hidden, left = nn.apply(_hidden, model, mutable=[ROUTING])(variables, batch)
        return _token_loss(variables, hidden, batch) + _router_loss(left) * jnp.sum(batch.loss_weights)

    def _token_loss(variables: Any, hidden: Float[Array, "B T D"], batch: Batch) -> Float[Array, ""]:
        logits_of = partial(model.apply, variables, method="logits")
        if config.chunk_tokens is None:
            logits: Any = logits_of(hidden)
            return weighted_cross_entropy(logits, batch.targets, batch.loss_weights)
        return _chunked(logits_of, hidden, batch, config.chunk_tokens)

    def _router_loss(left: Any) -> Float[Array, ""] | float:
        if not (config.balance_weight or config.router_weight) or not has_experts(model):
            return 0.0
        sums = total_sums(left.get(ROUTING, {}))
        return config.balance_weight * balance_loss(sums) + config.router_weight * normaliser_loss(sums)

    return objective


def has_experts(model: Any) -> bool:
    return model.config.decoder.experts is not None


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
