"""Which samples are wanted, by what is known of them without a look at their pixels."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from data_pipelines.config_class import Config
from data_pipelines.quota import FILTERED, Skip

ASPECT_RATIO = "aspect_ratio"
"""The longer of `width` and `height` over the shorter, where a sample does not state it itself."""


class FieldFilter(Config):
    """What a field of a sample's metadata must be; a sample that does not have the field is not wanted."""

    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str | bool | int, ...] | None = Field(default=None, min_length=1)
    """Values allowed, such as `[UNLIKELY]` of LAION's NSFW."""

    @model_validator(mode="after")
    def _says_something(self) -> "FieldFilter":
        if self.at_least is None and self.at_most is None and self.one_of is None:
            raise ValueError("found no bound; give at_least, at_most or one_of")
        if self.one_of is not None and not (self.at_least is None and self.at_most is None):
            raise ValueError("one_of does not go with at_least and at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:g} exceeds at_most {self.at_most:g}")
        return self

    def refusal(self, value: Any) -> str | None:
        """Why a value is not wanted.

        Raises:
            TypeError: a bound is asked of what is no number.
        """
        if self.one_of is not None:
            return None if value in self.one_of else f"{value!r} is none of {', '.join(map(str, self.one_of))}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{value!r} is no number")
        if self.at_least is not None and not value >= self.at_least:
            return f"{value:g} is below {self.at_least:g}"
        if self.at_most is not None and not value <= self.at_most:
            return f"{value:g} is above {self.at_most:g}"
        return None


def refusal(filters: Mapping[str, FieldFilter], metadata: Mapping[str, Any], key: str) -> Skip | None:
    """Why a sample is left out: the first filter that it does not pass, or a field that no filter can judge.

    Args:
        filters: by the field's name.
        metadata: of the sample.
        key: of the sample.
    """
    for name, each in filters.items():
        value = metadata.get(name)
        if value is None and name == ASPECT_RATIO:
            value = _aspect_ratio(metadata)
        if value is None:
            return Skip(f"{FILTERED}{name}", key, f"the metadata has no {name!r}")
        try:
            why = each.refusal(value)
        except TypeError as error:
            return Skip("not_a_number", key, f"{name}: {error}")
        if why is not None:
            return Skip(f"{FILTERED}{name}", key, why)
    return None


def _aspect_ratio(metadata: Mapping[str, Any]) -> float | None:
    width, height = metadata.get("width"), metadata.get("height")
    if not (isinstance(width, int | float) and isinstance(height, int | float) and min(width, height) > 0):
        return None
    return max(width, height) / min(width, height)
