"""What a run file says about one stage."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from data_pipelines.config_class import Config
from data_pipelines.mixture import MixtureConfig
from data_pipelines.transforms.augmentation import AugmentationConfig
from mllm_jax.models.layers.low_rank import LowRankConfig
from mllm_jax.models.virtual_tokens import PrefixTuningConfig, PromptTuningConfig, VirtualTokensConfig
from mllm_jax.training.averages import AverageConfig
from mllm_jax.training.objectives.choice import ObjectiveConfig
from mllm_jax.training.objectives.next_token import NextTokenConfig
from mllm_jax.training.objectives.preference import PreferenceConfig
from mllm_jax.training.optimizers import AdamWConfig, OptimizerConfig
from mllm_jax.training.rate_groups import RateGroupConfig
from mllm_jax.training.schedules import ScheduleConfig, make_schedule


def _with_kind(value: Any) -> Any:
    return {"kind": "low_rank"} | value if isinstance(value, dict) else value


AdapterConfig = Annotated[
    Annotated[LowRankConfig | PromptTuningConfig | PrefixTuningConfig, Field(discriminator="kind")],
    BeforeValidator(_with_kind),
]
"""Low-rank where no kind is named."""


ENDLESS_BATCHES = 8
"""Batches of held-out data that are averaged where nothing says how many."""


class ValidationConfig(Config):
    """The held-out loss, measured on the same first batches every time."""

    mixture: MixtureConfig
    batches: int | None = Field(default=None, gt=0)
    """Batches of the stage's rows and row length that are averaged, at most; null: 8, or all of a mixture that ends
    (`{held_out: {epochs: 1}}` measures every record once)."""
    every: int = Field(default=100, gt=0)
    """Steps from one measurement to the next; there is always one after the last step."""

    @property
    def most_batches(self) -> int | None:
        """How many batches are averaged at most; None: all."""
        return self.batches or (None if self.mixture.ends else ENDLESS_BATCHES)


class StageConfig(Config):
    """One entry of `stages`: what data, what trains, how and for how long."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Names the stage's folder and its curves."""
    template: str | None = None
    """Chat template of this stage; null takes the model's."""
    mixture: MixtureConfig
    """Sources by name, with a weight or epochs each, and what happens when one runs out."""
    validation: ValidationConfig | None = None
    rows: int = Field(gt=0)
    """Rows of a global batch, over all devices and accumulated parts."""
    row_length: int = Field(gt=1)
    """Tokens of a row, image tokens included."""
    images_per_row: int = Field(ge=0)
    """Image slots of a row."""
    steps: int = Field(gt=0)
    """Of the schedule; the stage ends earlier where its mixture does."""
    trainable: tuple[str, ...]
    """Path patterns of the parameters that train, such as `connector/**`; `**` alone is all of them."""
    augmentation: AugmentationConfig | None = None
    """Random changes of the images that the stage trains on; null: none."""
    adapters: dict[str, AdapterConfig] = Field(default={})
    """Low-rank adapters that train too, by a name; a linear map that several choose has the first. What the stage
    leaves to the next one and to every reader is the model with its adapters merged. Also the virtual tokens of prompt
    tuning or prefix tuning, of which a model has those of one adapter, in its last stage."""
    objective: ObjectiveConfig = NextTokenConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    groups: dict[str, RateGroupConfig] = Field(default={})
    """Parameters with learning rates of their own, by a name for their curve; all others follow the schedule."""
    average: AverageConfig | None = None
    """A running average of what trains; null: none."""
    accumulate: int = Field(default=1, gt=0)
    """Into how many parts the rows are cut, one after another, to save memory; the result is the same."""

    @model_validator(mode="after")
    def _check(self) -> "StageConfig":
        if not (self.trainable or self.adapters):
            raise ValueError("nothing trains: name parameters in trainable, or adapters")
        virtual = [name for name, config in self.adapters.items() if not isinstance(config, LowRankConfig)]
        if len(virtual) > 1:
            raise ValueError(
                f"adapters: {' and '.join(virtual)} are virtual tokens both, of which a model has those of one adapter "
                "alone; leave one out"
            )
        if self.rows % self.accumulate:
            raise ValueError(f"rows {self.rows} cannot be cut into accumulate {self.accumulate} equal parts")
        make_schedule(self.schedule, self.steps)
        scored = isinstance(self.objective, PreferenceConfig) and self.objective.reference == "cached"
        if self.augmentation is not None and scored:
            raise ValueError(
                "augmentation changes images, but objective.variant.reference cached scores unchanged ones; leave one "
                "of them out"
            )
        problem = self.objective.accumulation_problem(self.accumulate)
        problem = problem or self.objective.slot_problem(self.rows, self.row_length, self.images_per_row)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def low_rank_adapters(self) -> dict[str, LowRankConfig]:
        """Those of the adapters that stand beside kernels."""
        return {name: config for name, config in self.adapters.items() if isinstance(config, LowRankConfig)}

    @property
    def virtual_tokens(self) -> tuple[str, VirtualTokensConfig] | None:
        """The adapter, and its name, that stands before every segment; None: there is none."""
        virtual = ((name, config) for name, config in self.adapters.items() if not isinstance(config, LowRankConfig))
        return next(virtual, None)

    def mixtures(self) -> dict[tuple[str, ...], MixtureConfig]:
        """Every mixture that the stage draws from, with its key path inside the stage."""
        mixtures: dict[tuple[str, ...], MixtureConfig] = {("mixture",): self.mixture}
        if self.validation is not None:
            mixtures["validation", "mixture"] = self.validation.mixture
        return mixtures
