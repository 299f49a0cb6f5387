"""What it costs a model to prefer the worse of two answers: variants of preference tuning, as their papers have them.

Everything is per pair: log-probabilities of whole answers in, losses and rewards out.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from pydantic import Field

from data_pipelines.config_class import Config


class BothAnswers(NamedTuple):
    """One number of the better and one of the worse answer of every pair."""

    chosen: Float[Array, "*pairs"]
    rejected: Float[Array, "*pairs"]

    def minus(self, other: "BothAnswers") -> "BothAnswers":
        return BothAnswers(self.chosen - other.chosen, self.rejected - other.rejected)

    def times(self, factor: float) -> "BothAnswers":
        return BothAnswers(factor * self.chosen, factor * self.rejected)

    def per_token(self, tokens: "BothAnswers") -> "BothAnswers":
        """Means over the tokens of the answers; 0 for answers without any."""
        return BothAnswers(*(each / jnp.maximum(count, 1) for each, count in zip(self, tokens, strict=True)))

    @property
    def margin(self) -> Float[Array, "*pairs"]:
        return self.chosen - self.rejected


class Pairs(NamedTuple):
    """Pairs as the model that trains and the reference find them."""

    policy: BothAnswers
    """Summed log-probabilities of the answers."""
    reference: BothAnswers
    """Likewise; zeros for variants without a reference."""
    tokens: BothAnswers
    """Supervised tokens of the answers."""
    there: Bool[Array, "*pairs"]
    """Which of the places hold a pair."""


class Compared(NamedTuple):
    """What comes of it, for every pair."""

    losses: Float[Array, "*pairs"]
    rewards: BothAnswers
    """How much the model is for an answer, in the unit in which the variant compares."""


class _WithReference(Config):
    reference: Literal["live", "cached"] = "live"
    """What the model is compared with, as it is when the stage begins: `live`: itself, run beside it; where adapters
    alone train, without them, else with a frozen copy of what trains; `cached`: what `mllm score` has written beside
    every pair, so that no second model is run or held."""


class DPOConfig(_WithReference):
    """Direct preference optimisation (arXiv:2305.18290)."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs that are taken to be the wrong way round (conservative DPO)."""


class IPOConfig(_WithReference):
    """Identity preference optimisation (arXiv:2310.12036), of mean log-probabilities of a token."""

    kind: Literal["ipo"] = "ipo"
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to the reference: the margin is drawn to 1 / (2 beta)."""


class KTOConfig(_WithReference):
    """Kahneman-Tversky optimisation (arXiv:2402.01306) of pairs: each answer is judged against how far the model has
    moved on the other ones. That is estimated over the whole batch, and not trained through."""

    kind: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to the reference."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Of the losses of better answers."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Of the losses of worse answers."""


class ORPOConfig(Config):
    """Odds ratio preference optimisation (arXiv:2403.07691): the mean negative log-likelihood of a better answer's
    token and a term of the odds; no reference."""

    kind: Literal["orpo"] = "orpo"
    odds_weight: float = Field(default=0.1, ge=0)
    """Of the term of the odds (the paper's lambda)."""


class SimPOConfig(Config):
    """Simple preference optimisation (arXiv:2405.14734), of mean log-probabilities of a token; no reference."""

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(default=2.0, gt=0)
    """Factor of the mean log-probabilities."""
    gamma: float = Field(default=1.0, ge=0)
    """By how much a better answer's reward is to exceed the worse one's."""


VariantConfig = Annotated[
    DPOConfig | IPOConfig | KTOConfig | ORPOConfig | SimPOConfig,
    Field(discriminator="kind"),
]


def dpo(config: DPOConfig, pairs: Pairs) -> Compared:
    rewards = pairs.policy.minus(pairs.reference).times(config.beta)
    smoothing = config.label_smoothing
    losses = -(1 - smoothing) * jax.nn.log_sigmoid(rewards.margin)
    if smoothing:
        losses -= smoothing * jax.nn.log_sigmoid(-rewards.margin)
    return Compared(losses, rewards)


def ipo(config: IPOConfig, pairs: Pairs) -> Compared:
    moved = pairs.policy.per_token(pairs.tokens).minus(pairs.reference.per_token(pairs.tokens))
    return Compared((moved.margin - 1 / (2 * config.beta)) ** 2, moved.times(config.beta))


def kto(config: KTOConfig, pairs: Pairs) -> Compared:
    moved = pairs.policy.minus(pairs.reference)
    count = jnp.maximum(jnp.sum(pairs.there), 1)

    def divergence(answers: Float[Array, "*pairs"]) -> Float[Array, ""]:
        mean = jnp.sum(jnp.where(pairs.there, answers, 0)) / count
        return jax.lax.stop_gradient(jnp.maximum(mean, 0))

    rewards = moved.times(config.beta)
    chosen = 1 - jax.nn.sigmoid(rewards.chosen - config.beta * divergence(moved.rejected))
    rejected = 1 - jax.nn.sigmoid(config.beta * divergence(moved.chosen) - rewards.rejected)
    return Compared((config.desirable_weight * chosen + config.undesirable_weight * rejected) / 2, rewards)


def orpo(config: ORPOConfig, pairs: Pairs) -> Compared:
    mean = pairs.policy.per_token(pairs.tokens)
    odds = mean.minus(BothAnswers(*(_log_of_rest(each) for each in mean)))
    losses = -mean.chosen - config.odds_weight * jax.nn.log_sigmoid(odds.margin)
    return Compared(losses, mean.times(config.odds_weight))


def simpo(config: SimPOConfig, pairs: Pairs) -> Compared:
    rewards = pairs.policy.per_token(pairs.tokens).times(config.beta)
    return Compared(-jax.nn.log_sigmoid(rewards.margin - config.gamma), rewards)


def _log_of_rest(log_probability: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """log(1 - exp(x)); finite for x = 0 too."""
    below_one = jnp.minimum(log_probability, -jnp.finfo(jnp.float32).eps)
    return jnp.log(-jnp.expm1(below_one))


VARIANTS: dict[str, Callable[[Any, Pairs], Compared]] = {
    "dpo": dpo,
    "ipo": ipo,
    "kto": kto,
    "orpo": orpo,
    "simpo": simpo,
}


def compare(config: VariantConfig, pairs: Pairs) -> Compared:
    """The losses and rewards of pairs by a variant."""
    return VARIANTS[config.kind](config, pairs)
