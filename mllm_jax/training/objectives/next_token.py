"""Next-token prediction, the objective of most stages."""

from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from pydantic import Field

from data_pipelines.batch import Batch
from mllm_jax.models.layers.experts import ROUTING, balance_loss, normaliser_loss, total_sums
from mllm_jax.models.layers.low_rank import DROPOUT, NO_ADAPTERS, Adapters, adapted
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.cross_entropy import (
    Logits,
    TokenLoss,
    chunk_problem,
    chunked_cross_entropy,
    weighted_cross_entropy,
)
from mllm_jax.training.objective import Losses, Objective, ObjectiveBase
from mllm_jax.training.weighting import Weighting, weighted_by


class NextTokenConfig(ObjectiveBase):
    """Next-token prediction."""

    kind: Literal["next_token"] = "next_token"
    chunk_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a row whose logits exist at one time: never more than [rows, chunk_tokens, vocabulary] of them. They
    are made twice, but only for as many tokens as the row with the most supervised ones has, in whole chunks. Must
    divide the row length; null makes the logits of all tokens at once."""
    weighting: Weighting = "token"
    """How much a supervised token counts: `token`: as every other; `sample`: so that all examples count alike, however
    long their answers are; `square_root`: halfway between."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a target's probability that goes to all tokens alike."""
    z_weight: float = Field(default=0.0, ge=0)
    """Weight of the square of the logits' normaliser, which keeps the logits small (z-loss)."""
    balance_weight: float = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss of a mixture of experts, which is smallest when its experts share the tokens
    evenly. Part of the training loss only, never of the validation loss."""
    router_weight: float = Field(default=0.0, ge=0)
    """Weight of the square of the routers' normalisers, which keeps their logits small (z-loss, arXiv:2202.08906)."""

    def row_problem(self, row_length: int) -> str | None:
        return chunk_problem(self.chunk_tokens, row_length)

    def plain(self) -> "NextTokenConfig":
        """The objective that validation measures: the mean negative log-likelihood of a supervised token."""
        return NextTokenConfig(chunk_tokens=self.chunk_tokens, balance_weight=0.0)


def next_token_objective(model: nn.Module, config: NextTokenConfig, adapters: Adapters = NO_ADAPTERS) -> Objective:
    """The summed loss of predicting each supervised token from those before it.

    Losses of a mixture's routers are added to every supervised token's.

    Args:
        model: a `Multimodal`.
        config: of the loss.
        adapters: path of a linear map -> the adapter whose parameters stand beside its kernel.
    """

    token_loss = TokenLoss(config.label_smoothing, config.z_weight, vocabulary_used(model))

    def losses(parameters: ParameterTree, batch: Batch, key: Array | None) -> Losses:
        variables, randomness = {"params": parameters}, {} if key is None else {DROPOUT: key}
        with adapted(adapters):
            hidden, left = nn.apply(hidden_states, model, mutable=[ROUTING])(variables, batch, rngs=randomness)
        return Losses(_token_loss(variables, hidden, batch) + _router_loss(left) * jnp.sum(batch.loss_weights))

    def _token_loss(variables: Any, hidden: Float[Array, "B T D"], batch: Batch) -> Float[Array, ""]:
        logits_of: Logits = partial(model.apply, variables, method="logits")  # type: ignore[assignment]
        supervision = (batch.targets, batch.loss_weights)
        if config.chunk_tokens is None:
            return weighted_cross_entropy(logits_of(hidden), *supervision, token_loss)
        return chunked_cross_entropy(logits_of, hidden, *supervision, config.chunk_tokens, token_loss)

    def _router_loss(left: Any) -> Float[Array, ""] | float:
        if not (config.balance_weight or config.router_weight) or not has_experts(model):
            return 0.0
        sums = total_sums(left.get(ROUTING, {}))
        return config.balance_weight * balance_loss(sums) + config.router_weight * normaliser_loss(sums)

    return Objective(losses, weighed=partial(weighted_by, config.weighting))


def vocabulary_used(model: Any) -> int | None:
    return model.config.decoder.vocab_used


def has_experts(model: Any) -> bool:
    return model.config.decoder.experts is not None


def image_features(model: Any, batch: Batch) -> Float[Array, "B N I E"]:
    """What the decoder is shown of the images of a batch; `model` is bound."""
    return model.encode_images(batch.images, batch.image_mask, batch.instructions)


def hidden_states(model: Any, batch: Batch, features: Float[Array, "B N I E"] | None = None) -> Float[Array, "B T D"]:
    """The decoder's last hidden states; `features` are `image_features`, made here if they are not given."""
    features = image_features(model, batch) if features is None else features
    media = model.media(features, batch.image_index, batch.segment_ids)
    embeddings = model.embed(batch.tokens, features, batch.image_index)
    positions = model.turning(batch.positions, batch.image_index)
    return model.decode(embeddings, batch.segment_ids, positions, media=media, answer_mask=batch.answer_mask)[0]
