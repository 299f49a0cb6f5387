"""What a stage minimises: the contract between the objectives and everything that runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from data_pipelines.batch import Batch
from data_pipelines.config_class import Config
from mllm_jax.checkpoint.layout import OBJECTIVE
from mllm_jax.models.layers.low_rank import Adapters
from mllm_jax.parallel.rules import ParameterTree


class ObjectiveError(ValueError):
    """An objective that a stage or a model cannot have; the message begins with the key."""


class ObjectiveBase(Config):
    """What a run file says of an objective; each kind names what keeps it from a stage."""

    segments_fill_rows: ClassVar[bool] = True
    """Whether a segment may be as long as a row, and so take as many positions of the decoder."""

    def row_problem(self, row_length: int) -> str | None:
        """What keeps this objective from rows of so many tokens; None: nothing."""
        return None

    def accumulation_problem(self, parts: int) -> str | None:
        """What keeps this objective from batches in so many parts; None: nothing."""
        return None

    def slot_problem(self, rows: int, row_length: int, images_per_row: int) -> str | None:
        """What keeps this objective from rows with so many image slots; None: nothing."""
        return None

    def plain(self) -> Self:
        """The objective that validation measures."""
        return self


class Losses(NamedTuple):
    """Sums over the examples of a batch, or of a part of one."""

    total: Float[Array, ""]
    """Of loss times weight: what is minimised."""
    parts: Mapping[str, Float[Array, ""]] = {}
    """Of what else is worth a curve, by its name; divided by the same weight as the total."""


def supervised_weight(batch: Batch) -> Float[Array, ""]:
    """The sum of the loss weights of the global batch."""
    return jnp.sum(batch.loss_weights, dtype=jnp.float32)


def _as_it_is(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True, eq=False)
class OwnParameters:
    """Parameters that stand under `objective/` while the stage runs; all train, or none."""

    shapes: Mapping[str, jax.ShapeDtypeStruct] = field(default_factory=dict)
    """By the path below `objective/`."""
    axes: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Logical names of their axes."""
    initial: Callable[[ParameterTree, Array], Mapping[str, Array]] = lambda parameters, key: {}
    """From the model's parameters as the stage begins, and a random key."""
    train: bool = True

    def paths(self) -> frozenset[str]:
        """In the tree of all parameters."""
        return frozenset(f"{OBJECTIVE}/{path}" for path in self.shapes)


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss, by what it is divided, and the parameters of its own."""

    losses: Callable[[ParameterTree, Batch, Array | None], Losses]
    """Of all parameters and a batch. The key is of the random numbers of a training step; None where nothing is left
    to chance."""
    weight: Callable[[Batch], Float[Array, ""]] = supervised_weight
    """By what the sums over the global batch are divided; 0 where there is nothing to learn from."""
    weighed: Callable[[Batch], Batch] = _as_it_is
    """What becomes of the loss weights of the global batch before anything else."""
    own: OwnParameters = OwnParameters()
    reads: Callable[[str], bool] = lambda path: True
    """Whether the losses depend on a parameter of the model, by its path. What they do not depend on stays as it is,
    even where a stage's `trainable` chooses it: no weight decay wears it away."""
    one_pass: bool = True
    """Whether a step is one pass of the whole model over the batch, whose operations can be counted."""
    again: frozenset[str] = frozenset()
    """Parts of the model (`encoder`, `connector`, `decoder`) that run forward once more than their training takes."""

    def __call__(self, parameters: ParameterTree, batch: Batch, key: Array | None = None) -> Float[Array, ""]:
        """The sum of loss times weight."""
        return self.losses(parameters, batch, key).total


class StageModel(NamedTuple):
    """What an objective is made for: the model as a stage trains it; nothing is allocated."""

    model: nn.Module
    """A `Multimodal`."""
    adapters: Adapters
    """Path of a linear map -> the adapter whose parameters stand beside its kernel."""
    parameters: ParameterTree
    """Shapes of all parameters, those of the adapters too."""
    axes: ParameterTree
    """Logical names of their axes."""
    trainable: tuple[str, ...]
    """Paths of those that train."""
