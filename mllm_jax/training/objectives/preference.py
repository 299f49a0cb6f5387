"""Preference tuning: of two answers to the same question the better one is to become the more probable one."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float
from pydantic import Field

from data_pipelines.batch import Batch
from mllm_jax.checkpoint.layout import OBJECTIVE
from mllm_jax.models.adapters import adapter_paths
from mllm_jax.models.layers.low_rank import DROPOUT, NO_ADAPTERS, Adapters, adapted
from mllm_jax.models.virtual_tokens import virtual_paths, without_virtual_tokens
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.cross_entropy import Logits, chunk_problem, chunked_token_losses, token_losses
from mllm_jax.training.objective import Losses, Objective, ObjectiveBase, OwnParameters, StageModel
from mllm_jax.training.objectives.next_token import hidden_states, image_features
from mllm_jax.training.objectives.preference_losses import (
    BothAnswers,
    Compared,
    DPOConfig,
    KTOConfig,
    Pairs,
    VariantConfig,
    compare,
)
from mllm_jax.training.state import merge

REFERENCE = "reference"
"""The branch of the objective's own parameters that holds what trains as it is when the stage begins."""

_IMAGE_PARTS = ("encoder", "connector")


class PreferenceConfig(ObjectiveBase):
    """Preference tuning on pairs of a better and a worse answer."""

    kind: Literal["preference"] = "preference"
    variant: VariantConfig = DPOConfig()
    """How the answers are compared, by `kind`: dpo, ipo, kto, orpo or simpo."""
    supervised_weight: float = Field(default=0.0, ge=0)
    """Of the mean negative log-likelihood of a better answer's token, added to the loss of its pair
    (arXiv:2404.19733)."""
    chunk_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a row whose logits exist at one time: never more than [rows, chunk_tokens, vocabulary] of them. Must
    divide the row length; null makes the logits of all tokens at once."""

    @property
    def reference(self) -> Literal["live", "cached"] | None:
        """What the model is compared with; None: with nothing."""
        return getattr(self.variant, "reference", None)

    def row_problem(self, row_length: int) -> str | None:
        return chunk_problem(self.chunk_tokens, row_length)

    def accumulation_problem(self, parts: int) -> str | None:
        if parts == 1 or not isinstance(self.variant, KTOConfig):
            return None
        return (
            f"accumulate: found {parts}, expected 1, as objective.variant kto compares every pair with the mean over "
            "the whole batch; use fewer rows, or another variant"
        )


def preference_objective(stage: StageModel, config: PreferenceConfig) -> Objective:
    """The summed loss of pairs, divided by their number.

    Every answer's log-probability is the sum over its supervised tokens. Rewards, their margin, how often it is
    positive, and the log-probabilities are parts.
    """
    live = config.reference == "live"
    copied = _copied(stage) if live else ()
    # What is frozen makes of an image what it made of it when the stage began.
    shared = not any(path.startswith(_IMAGE_PARTS) for path in stage.trainable)
    log_probabilities = partial(_log_probabilities, stage.model, config.chunk_tokens)

    def losses(parameters: ParameterTree, batch: Batch, key: Array | None) -> Losses:
        features, reference = None, batch.reference
        if shared:
            features = _features(stage.model, parameters, batch)
        if live:
            before = merge(parameters, parameters[OBJECTIVE][REFERENCE]) if copied else parameters
            before = without_virtual_tokens(before)
            reference = log_probabilities(NO_ADAPTERS, before, batch, features, None)
            batch = _behind(reference, batch)
        policy = log_probabilities(stage.adapters, parameters, batch, features, key)
        pairs = pairs_of(batch, policy, reference)
        return _sums(pairs, compare(config.variant, pairs), config.supervised_weight)

    again = frozenset(("decoder",) if shared else (*_IMAGE_PARTS, "decoder")) if live else frozenset()
    return Objective(losses, weight=pair_count, own=_own(stage, copied), again=again)


def pair_count(batch: Batch) -> Float[Array, ""]:
    """The preference pairs of the global batch."""
    return jnp.sum((batch.preference == 1) & (batch.positions == 0), dtype=jnp.float32)


def pairs_of(batch: Batch, policy: Float[Array, "B T"], reference: Float[Array, "B T"] | None) -> Pairs:
    """The pairs of a batch, as many places as there are tokens.

    Args:
        batch: in which the segment of a worse answer comes next to that of the better one.
        policy: what is to be summed over the tokens of each segment.
        reference: likewise; None: zeros.
    """

    def of_segments(values: Float[Array, "B T"]) -> BothAnswers:
        sum_row = partial(jax.ops.segment_sum, num_segments=values.shape[1] + 1)
        sums = jax.vmap(sum_row)(values, batch.segment_ids)
        return BothAnswers(sums[:, :-1], sums[:, 1:])

    opens_chosen = (batch.preference == 1) & (batch.positions == 0)
    return Pairs(
        policy=of_segments(policy),
        reference=of_segments(jnp.zeros_like(policy) if reference is None else reference),
        tokens=of_segments((batch.loss_weights != 0).astype(jnp.float32)),
        there=of_segments(opens_chosen.astype(jnp.float32)).chosen > 0,
    )


def _sums(pairs: Pairs, compared: Compared, supervised_weight: float) -> Losses:
    losses, rewards = compared
    if supervised_weight:
        losses = losses - supervised_weight * pairs.policy.per_token(pairs.tokens).chosen

    def total(values: Array) -> Float[Array, ""]:
        return jnp.sum(jnp.where(pairs.there, values, 0), dtype=jnp.float32)

    parts = {
        "reward_margin": rewards.margin,
        "reward_accuracy": rewards.margin > 0,
        "chosen_reward": rewards.chosen,
        "rejected_reward": rewards.rejected,
        "chosen_log_probability": pairs.policy.chosen,
        "rejected_log_probability": pairs.policy.rejected,
    }
    return Losses(total(losses), {name: total(values) for name, values in parts.items()})


def _behind(reference: Float[Array, "B T"], batch: Batch) -> Batch:
    """The batch as it is, but not before the reference is there.

    Nothing else keeps a compiler from running both passes at the same time, with the activations of both in memory; and
    simulated devices, which share a few threads, wait forever for each other in the collectives of two passes. A
    reference that is no number makes the loss none either, so that the tokens do not matter then.
    """
    late = jnp.isnan(jnp.sum(reference))
    return batch._replace(tokens=batch.tokens + late, images=batch.images + late)


def _features(model: nn.Module, parameters: ParameterTree, batch: Batch) -> Any:
    return nn.apply(image_features, model)({"params": parameters}, batch)


def _log_probabilities(
    model: nn.Module,
    chunk_tokens: int | None,
    adapters: Adapters,
    parameters: ParameterTree,
    batch: Batch,
    features: Float[Array, "B N I E"] | None,
    key: Array | None,
) -> Float[Array, "B T"]:
    """Of every supervised token, given those before it; 0 elsewhere. Features are made here if they are not given."""
    variables, randomness = {"params": parameters}, {} if key is None else {DROPOUT: key}
    with adapted(adapters):
        hidden = nn.apply(hidden_states, model)(variables, batch, features, rngs=randomness)
    logits_of: Logits = partial(model.apply, variables, method="logits")  # type: ignore[assignment]
    if chunk_tokens is not None:
        return -chunked_token_losses(logits_of, hidden, batch.targets, batch.loss_weights, chunk_tokens)
    return -jnp.where(batch.loss_weights != 0, token_losses(logits_of(hidden), batch.targets), 0)


def _copied(stage: StageModel) -> tuple[str, ...]:
    """Paths of what trains but for adapters, without which the model is what it was."""
    own = adapter_paths(stage.adapters, stage.axes) | virtual_paths(stage.axes)
    return tuple(path for path in stage.trainable if path not in own)


def _own(stage: StageModel, copied: tuple[str, ...]) -> OwnParameters:
    """The copy of what trains that the reference is run with."""
    if not copied:
        return OwnParameters()
    shapes, axes = flatten_dict(stage.parameters, sep="/"), flatten_dict(stage.axes, sep="/")

    def initial(parameters: ParameterTree, key: Array) -> Mapping[str, Array]:
        flat = flatten_dict(parameters, sep="/")
        # A copy, as the buffers of what trains are given away at every step.
        return {f"{REFERENCE}/{path}": jnp.copy(flat[path]) for path in copied}

    return OwnParameters(
        shapes={f"{REFERENCE}/{path}": shapes[path] for path in copied},
        axes={f"{REFERENCE}/{path}": axes[path] for path in copied},
        initial=initial,
        train=False,
    )
