"""Learning-rate schedules: a warm-up, then one of four shapes."""

from collections.abc import Callable
from typing import Literal

import optax
from pydantic import Field, model_validator

from data_pipelines.config_class import Config


class ScheduleConfig(Config):
    """The learning rate over the steps of a stage."""

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """What follows the warm-up: half a cosine, a straight line, the peak held, or the peak held and then a straight
    line down (warm-up, stable, decay)."""
    peak: float = Field(default=1e-3, gt=0)
    """Learning rate at the end of the warm-up."""
    warmup: float = Field(default=0.03, ge=0)
    """Length of the rise from 0: below 1 a fraction of the steps, otherwise a number of steps."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak (no meaning for `constant`)."""
    decay: float = Field(default=0.1, gt=0)
    """Length of the fall of `wsd`: below 1 a fraction of the steps, otherwise a number of steps."""

    @model_validator(mode="after")
    def _check_lengths(self) -> "ScheduleConfig":
        for name in ("warmup", "decay"):
            length = getattr(self, name)
            if length >= 1 and length != int(length):
                raise ValueError(f"{name} is {length}; use a fraction below 1 or a whole number of steps")
        return self


def _length(value: float, steps: int) -> int:
    return round(value * steps) if value < 1 else int(value)


def _cosine(config: ScheduleConfig, remaining: int, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.peak, remaining, alpha=config.final)


def _linear(config: ScheduleConfig, remaining: int, steps: int) -> optax.Schedule:
    return optax.linear_schedule(config.peak, config.peak * config.final, remaining)


def _constant(config: ScheduleConfig, remaining: int, steps: int) -> optax.Schedule:
    return optax.constant_schedule(config.peak)


def _warmup_stable_decay(config: ScheduleConfig, remaining: int, steps: int) -> optax.Schedule:
    decay = _length(config.decay, steps)
    if decay > remaining:
        raise ValueError(f"a decay of {decay} steps does not fit into the {remaining} steps after the warm-up")
    fall = optax.linear_schedule(config.peak, config.peak * config.final, max(decay, 1))
    return optax.join_schedules([optax.constant_schedule(config.peak), fall], [remaining - decay])


_SHAPES: dict[str, Callable[[ScheduleConfig, int, int], optax.Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _warmup_stable_decay,
}


def make_schedule(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of steps done, for a stage of `steps` steps.

    The warm-up starts at 0, as in Hugging Face's and optax's schedules, so the first step changes nothing
    when there is one.

    Raises:
        ValueError: the warm-up (and the decay) do not fit into the steps.
    """
    warmup = _length(config.warmup, steps)
    if warmup >= steps and warmup > 0:
        raise ValueError(f"a warm-up of {warmup} steps does not fit into a stage of {steps} steps")
    shape = _SHAPES[config.kind](config, steps - warmup, steps)
    if not warmup:
        return shape
    return optax.join_schedules([optax.linear_schedule(0.0, config.peak, warmup), shape], [warmup])
