"""The objectives a run file can choose from, by `kind`."""

from collections.abc import Callable
from typing import Any

from mllm_jax.training.objective import Objective, StageModel
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective

ObjectiveConfig = NextTokenConfig

OBJECTIVES: dict[str, Callable[[StageModel, Any], Objective]] = {
    "next_token": lambda stage, config: next_token_objective(stage.model, config, stage.adapters),
}


def make_objective(stage: StageModel, config: ObjectiveConfig) -> Objective:
    """The objective of a config, for the model as a stage trains it."""
    return OBJECTIVES[config.kind](stage, config)
