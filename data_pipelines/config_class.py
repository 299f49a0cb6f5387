"""The base of every config class: frozen, closed to unknown keys, hashable."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen config value.

    Unknown keys are errors, defaults are validated, and sequences are tuples, so that a config can be an
    attribute of a Linen module and a static argument of a jitted function.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)
