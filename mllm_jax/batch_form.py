"""The form of a stage's batches, which the run file alone says: no data and no tokenizer has a part in it."""

from typing import NamedTuple

import jax
from jax.sharding import NamedSharding

from data_pipelines.assemble import empty_batch
from data_pipelines.batch import Batch
from mllm_jax.models.connectors.choice import instruction_tokens
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.training.objectives.contrastive import ContrastiveObjectiveConfig
from mllm_jax.training.objectives.preference import PreferenceConfig
from mllm_jax.training.objectives.q_former import QFormerObjectiveConfig
from mllm_jax.training.stages import StageConfig


class BatchForm(NamedTuple):
    """What decides the arrays of a batch beside its rows, their length and their image slots."""

    image_size: tuple[int, int]
    """(H, W) in pixels of a slot."""
    instruction_tokens: int = 0
    preferences: bool = False
    """Whether its records are pairs of answers."""
    references: bool = False
    """Whether a reference model has scored them."""


def learns_from_pairs(stage: StageConfig) -> bool:
    """Whether a stage compares images with their texts, so that no chat template has a part in it."""
    return isinstance(stage.objective, ContrastiveObjectiveConfig | QFormerObjectiveConfig)


def batch_form(model: MultimodalConfig, stage: StageConfig) -> BatchForm:
    """The form of the batches that a stage of a run with this model trains on."""
    size = model.encoder.image_size
    if learns_from_pairs(stage):
        return BatchForm(size)
    objective = stage.objective
    compared = isinstance(objective, PreferenceConfig)
    scored = isinstance(objective, PreferenceConfig) and objective.reference == "cached"
    return BatchForm(size, instruction_tokens(model.connector), compared, scored)


def abstract_batch(form: BatchForm, stage: StageConfig, sharding: NamedSharding) -> Batch:
    """Shapes, dtypes and shardings of a global batch; a row of it is made, and no more."""
    row = empty_batch(1, stage.row_length, stage.images_per_row, *form)
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((stage.rows, *array.shape[1:]), array.dtype, sharding=sharding), row
    )
