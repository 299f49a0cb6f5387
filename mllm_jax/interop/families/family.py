"""What a family of models is to the importer and the exporter: a weight table and a config mapping both ways."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from data_pipelines.config_class import Config
from mllm_jax.interop.rules import Table
from mllm_jax.models.parameters import ModelConfig

HuggingFaceConfig = Mapping[str, Any]
"""The content of a `config.json`, or of a part of it."""


ConfigType = TypeVar("ConfigType", bound=ModelConfig)


class FamilyError(ValueError):
    """A config that cannot be carried over; the message names the key and the values that can."""


@dataclass(frozen=True)
class Family(Generic[ConfigType]):
    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in a `config.json` that belong to this family."""
    table: Table
    from_hugging_face: Callable[[HuggingFaceConfig], ConfigType]
    """Raises FamilyError where their model does something ours does not."""
    to_hugging_face: Callable[[ConfigType], dict[str, Any]]
    """Raises FamilyError where our config is not one of this family."""
    accepts: Callable[[HuggingFaceConfig], bool] = lambda config: True
    """Tells apart families of one `model_type` whose weights have other names."""


def require(family: str, config: HuggingFaceConfig, **expected: Any) -> None:
    """Checks keys that a family can have in one way only; an absent key is at that value."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise FamilyError(f"{family}: {key} is {config[key]!r} in config.json, but only {value!r} can be imported.")


def require_ours(family: str, config: Config, **expected: Any) -> None:
    """Checks fields of our config that a family has in one way only."""
    for field, value in expected.items():
        if getattr(config, field) != value:
            raise FamilyError(f"{family} models have {field} = {value!r}, but this one has {getattr(config, field)!r}.")
