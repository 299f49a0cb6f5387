"""What a stage draws from which source, and what happens when a source runs out."""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from data_pipelines.config_class import Config

Exhausted = Literal["repeat", "stop", "renormalise"]


class SourceShare(Config):
    """How much of a source a mixture takes; a number alone is its weight."""

    weight: float | None = Field(default=None, ge=0)
    """Share of records, in proportion to the other weights; 0 leaves the source out. null: 1 where the mixture has a
    temperature, else as many as its epochs have records."""
    epochs: float | None = Field(default=None, gt=0)
    """How often the source is gone through before it has run out. null: for ever, unless no source of a mixture says
    so, where `exhausted` wants to know: then once."""

    @model_validator(mode="after")
    def _check(self) -> "SourceShare":
        if self.weight is None and self.epochs is None:
            raise ValueError("says nothing; write a weight, {epochs: 1.5} or both")
        if not all(math.isfinite(value) for value in (self.weight, self.epochs) if value is not None):
            raise ValueError(f"weights are finite, and so are epochs; found {self.weight or self.epochs}")
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> Any:
        if self.epochs is None:
            return self.weight
        return {name: value for name, value in handler(self).items() if value is not None}


def _with_weight(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | dict | SourceShare):
        raise ValueError(
            f"found {value!r}, expected the weight of a source, or {{weight: 2.0, epochs: 1.5}} or one of both; beside "
            "the sources a mixture has the keys exhausted and temperature"
        )
    return {"weight": value} if isinstance(value, int | float) else value


Share = Annotated[SourceShare, BeforeValidator(_with_weight, json_schema_input_type=float | SourceShare)]


class MixtureConfig(Config):
    """The sources that a stage draws from, by name, with a weight or a `SourceShare` each."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Share] = Field(init=False)

    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """T: a source is drawn in proportion to its weight times its number of records to the power of 1 / T, so 1 is in
    proportion to sizes, and large T makes sources alike; null: weights alone say it."""
    exhausted: Exhausted | None = None
    """What happens when a source has been gone through as often as its epochs say: it begins again (`repeat`), the data
    end (`stop`), or the other sources go on in their proportions until none is left (`renormalise`). null: repeat, or
    renormalise where a source has epochs."""

    @property
    def sources(self) -> dict[str, SourceShare]:
        """All that are named, by name."""
        return self.__pydantic_extra__ or {}

    @property
    def drawn(self) -> dict[str, SourceShare]:
        """Those that are drawn from."""
        return {name: share for name, share in self.sources.items() if share.weight != 0}

    @property
    def rule(self) -> Exhausted:
        """What happens when a source has run out."""
        return self.exhausted or ("renormalise" if self._says_epochs else "repeat")

    @property
    def epochs(self) -> dict[str, float]:
        """How often each drawn source is gone through before it has run out; infinity: it never has."""
        if self.rule == "repeat":
            return dict.fromkeys(self.drawn, math.inf)
        unsaid = math.inf if self._says_epochs else 1.0
        return {name: unsaid if share.epochs is None else share.epochs for name, share in self.drawn.items()}

    @property
    def ends(self) -> bool:
        """Whether the data end by themselves."""
        finite = [math.isfinite(epochs) for epochs in self.epochs.values()]
        return any(finite) if self.rule == "stop" else all(finite)

    @property
    def endless(self) -> "MixtureConfig":
        """The same proportions without an end, to measure them for as long as one likes."""
        return self.model_copy(update={"exhausted": "repeat"})

    @property
    def _says_epochs(self) -> bool:
        return any(share.epochs is not None for share in self.drawn.values())

    @model_validator(mode="after")
    def _check(self) -> "MixtureConfig":
        drawn = self.drawn
        if not drawn:
            raise ValueError(
                f"weights are finite, at least 0 and not all 0; found {self.model_dump()}; write it as {{pairs: 1.0}}"
            )
        by_size = [name for name, share in drawn.items() if share.weight is None]
        if self.temperature is None and by_size and len(by_size) < len(drawn):
            others = ", ".join(name for name in drawn if name not in by_size)
            raise ValueError(
                f"{', '.join(by_size)} is drawn in proportion to its epochs, but {others} by a weight, which have no "
                "common measure; give all of them epochs alone, or all of them a weight (beside epochs, if you like)"
            )
        shares_alone = self.temperature is None and len(by_size) > 1
        if self._says_epochs and self.rule == "repeat" and not shares_alone:
            raise ValueError(
                "epochs say when a source has run out, which exhausted: repeat never lets it; say stop or renormalise, "
                "or leave epochs out"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What a run wrote before there were these keys stays what it was.
        return {name: value for name, value in handler(self).items() if value is not None}
