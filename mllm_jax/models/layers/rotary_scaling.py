"""Ways to slow rotary frequencies, so that a model reads beyond the length that it was trained at."""

import math
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from pydantic import BeforeValidator, Field

from data_pipelines.config_class import Config


def plain_frequencies(width: int, theta: float | Float[Array, "B T 1"]) -> Float[Array, "*tokens half"]:
    """theta^(-2i / width), float32."""
    return 1.0 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)


class _Scaling(Config):
    needs_lengths: ClassVar[bool] = False
    """Whether the frequencies of a token depend on the length of its segment."""

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines."""
        return 1.0


class LinearRotaryScaling(_Scaling):
    """Every frequency slowed alike (https://arxiv.org/abs/2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0)

    def frequencies(self, width: int, theta: float, lengths: Int[Array, "B T"] | None) -> Float[Array, " half"]:
        return plain_frequencies(width, theta) / self.factor


class DynamicRotaryScaling(_Scaling):
    """A base that grows with the segment's length, once it exceeds the original ("dynamic NTK").

    As in transformers, the length is what has been read so far: keys in a cache keep the rotation that they got.
    """

    kind: Literal["dynamic"] = "dynamic"
    needs_lengths: ClassVar[bool] = True
    factor: float = Field(ge=1)
    original_positions: int = Field(gt=0)
    """Length in tokens up to which nothing is changed."""

    def frequencies(self, width: int, theta: float, lengths: Int[Array, "B T"] | None) -> Float[Array, "B T half"]:
        assert lengths is not None
        length = jnp.maximum(lengths, self.original_positions).astype(jnp.float32)[..., None]
        growth = self.factor * length / self.original_positions - (self.factor - 1)
        return plain_frequencies(width, theta * growth ** (width / (width - 2)))


class Llama3RotaryScaling(_Scaling):
    """LLaMA 3.1's stretch of the low frequencies, which lets a model read beyond the length it was trained at."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(default=8.0, gt=0)
    """How much the lowest frequencies are slowed."""
    low_frequency_factor: float = Field(default=1.0, gt=0)
    """Frequencies with fewer turns than this within `original_positions` are slowed by the whole factor."""
    high_frequency_factor: float = Field(default=4.0, gt=0)
    """Frequencies with more turns than this are left as they are; between the two, interpolated."""
    original_positions: int = Field(default=8192, gt=0)
    """Length in tokens of the training before the stretch."""

    def frequencies(self, width: int, theta: float, lengths: Int[Array, "B T"] | None) -> Float[Array, " half"]:
        frequencies = plain_frequencies(width, theta)
        turns = self.original_positions * frequencies / (2 * math.pi)
        kept = (turns - self.low_frequency_factor) / (self.high_frequency_factor - self.low_frequency_factor)
        kept = jnp.clip(kept, 0.0, 1.0)
        return kept * frequencies + (1.0 - kept) * frequencies / self.factor


class YarnRotaryScaling(_Scaling):
    """Low frequencies slowed, high ones kept, a ramp over the dimensions between (https://arxiv.org/abs/2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0)
    """How much the lowest frequencies are slowed."""
    original_positions: int = Field(gt=0)
    """Length in tokens of the training before the stretch."""
    fast_turns: float = Field(default=32.0, gt=0)
    """Frequencies with more turns than this within `original_positions` are kept."""
    slow_turns: float = Field(default=1.0, gt=0)
    """Frequencies with fewer turns than this are slowed by the whole factor."""
    whole_dimensions: bool = True
    """The ramp starts and ends at whole dimensions."""
    attention_factor: float | None = Field(default=None, gt=0)
    """Of cosines and sines; null: 0.1 ln(factor) + 1."""

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1 else 0.1 * math.log(self.factor) + 1.0

    def frequencies(self, width: int, theta: float, lengths: Int[Array, "B T"] | None) -> Float[Array, " half"]:
        def dimension(turns: float) -> float:
            return width * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.fast_turns), dimension(self.slow_turns)
        if self.whole_dimensions:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        # A ramp without length is a step.
        slowed = jnp.clip((jnp.arange(width // 2) - low) / ((high - low) or 1e-3), 0.0, 1.0)
        frequencies = plain_frequencies(width, theta)
        return slowed * frequencies / self.factor + (1.0 - slowed) * frequencies


class LongRotaryScaling(_Scaling):
    """A factor for every frequency, other ones for long segments than for short (https://arxiv.org/abs/2402.13753)."""

    kind: Literal["longrope"] = "longrope"
    needs_lengths: ClassVar[bool] = True
    short_factors: tuple[float, ...]
    """For segments of at most `original_positions` tokens."""
    long_factors: tuple[float, ...]
    original_positions: int = Field(gt=0)
    attention_factor: float = Field(gt=0)
    """Of cosines and sines, whatever the length."""

    @property
    def magnitude(self) -> float:
        return self.attention_factor

    def frequencies(self, width: int, theta: float, lengths: Int[Array, "B T"] | None) -> Float[Array, "B T half"]:
        assert lengths is not None
        factors = jnp.where(
            lengths[..., None] > self.original_positions,
            jnp.asarray(self.long_factors, jnp.float32),
            jnp.asarray(self.short_factors, jnp.float32),
        )
        return plain_frequencies(width, theta) / factors


def _with_kind(value: Any) -> Any:
    """LLaMA 3.1's keys were once the only ones, and needed no kind."""
    return {"kind": "llama3"} | value if isinstance(value, dict) else value


RotaryScaling = Annotated[
    LinearRotaryScaling | DynamicRotaryScaling | Llama3RotaryScaling | YarnRotaryScaling | LongRotaryScaling,
    Field(discriminator="kind"),
]
OptionalRotaryScaling = Annotated[RotaryScaling | None, BeforeValidator(_with_kind)]
