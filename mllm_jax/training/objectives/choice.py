"""The objectives a run file can choose from, by `kind`."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mllm_jax.training.objective import Objective, StageModel
from mllm_jax.training.objectives.contrastive import ContrastiveObjectiveConfig, contrastive_objective
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective
from mllm_jax.training.objectives.preference import PreferenceConfig, preference_objective
from mllm_jax.training.objectives.q_former import QFormerObjectiveConfig, q_former_objective


def _with_kind(value: Any) -> Any:
    """What a run file says of an objective without its kind is of the usual one."""
    return {"kind": "next_token", **value} if isinstance(value, dict) else value


ObjectiveConfig = Annotated[
    Annotated[
        NextTokenConfig | QFormerObjectiveConfig | ContrastiveObjectiveConfig | PreferenceConfig,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_with_kind),
]

OBJECTIVES: dict[str, Callable[[StageModel, Any], Objective]] = {
    "next_token": lambda stage, config: next_token_objective(stage.model, config, stage.adapters),
    "q_former": q_former_objective,
    "contrastive": contrastive_objective,
    "preference": preference_objective,
}


def make_objective(stage: StageModel, config: ObjectiveConfig) -> Objective:
    """The objective of a config, for the model as a stage trains it."""
    return OBJECTIVES[config.kind](stage, config)
