"""What a run is made of, built by whoever knows file formats; training itself knows none."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
from jax.sharding import NamedSharding

from data_pipelines.loading.loaded_batch import LoadedBatch
from data_pipelines.quota import Tally
from mllm_jax.models.layers.precision import PrecisionConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.stages import StageConfig

Json = dict[str, Any]


class Feed(Protocol):
    """An endless stream of batches that knows where it stands; a `Loader` is one."""

    def __iter__(self) -> Iterator[LoadedBatch]: ...

    def __next__(self) -> LoadedBatch: ...

    def check_quota(self, tallies: Iterable[Tally]) -> None:
        """Raises when too much of the data is bad, by the tallies in the reports of all processes."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class FeedRequest:
    """Which batches a stage wants."""

    stage: StageConfig
    split: Literal["train", "validation"]
    sharding: NamedSharding | None
    """For every array of a batch; its rows are split. None: NumPy arrays of all rows."""
    position: Json | None
    """Where to go on, from a checkpoint; None is the beginning."""
    lanes: Sequence[int] | None = None
    """Without a sharding, the lanes whose rows are wanted; None: all."""


@dataclass(frozen=True)
class Ingredients:
    """Everything that the stages share."""

    model: MultimodalConfig
    precision: PrecisionConfig
    initial_parameters: Callable[[ParameterTree], ParameterTree]
    """From a tree of `ShapeDtypeStruct` with shardings to parameters with these dtypes and shardings, as they are
    before the first stage; gives the same values whenever it is called."""
    open_feed: Callable[[FeedRequest], Feed]
    objective_weights: Callable[[StageConfig, Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.Array]] = (
        lambda stage, abstract: {}
    )
    """What of the parameters that a stage's objective owns (by their paths below `objective/`, with shardings) is read
    from files; all others begin as the objective says."""
    token_ids: Callable[[str], Sequence[int]] = lambda text: ()
    """The ids of a text in the decoder's vocabulary."""
    run: Json = field(default_factory=dict)
    """The resolved run file; goes into every checkpoint."""
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    """Likewise."""
    seed: int = 0
    """Of everything random in training: adapters at their start, dropout."""
