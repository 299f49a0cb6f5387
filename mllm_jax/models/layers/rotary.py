"""Rotary position embedding (https://arxiv.org/abs/2104.09864), pairing dimension i with i + C/2 as LLaMA does."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from pydantic import Field

from data_pipelines.config_class import Config


class Llama3RotaryScaling(Config):
    """LLaMA 3.1's stretch of the low frequencies, which lets a model read beyond the length it was trained at."""

    factor: float = Field(default=8.0, gt=0)
    """How much the lowest frequencies are slowed."""
    low_frequency_factor: float = Field(default=1.0, gt=0)
    """Frequencies with fewer turns than this within `original_positions` are slowed by the whole factor."""
    high_frequency_factor: float = Field(default=4.0, gt=0)
    """Frequencies with more turns than this are left as they are; between the two, interpolated."""
    original_positions: int = Field(default=8192, gt=0)
    """Length in tokens of the training before the stretch."""


def rotary_frequencies(
    head_width: int, theta: float, scaling: Llama3RotaryScaling | None = None
) -> Float[Array, " C/2"]:
    """Angle in radians by which each pair of dimensions turns at every position."""
    frequencies = 1.0 / theta ** (jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    if scaling is None:
        return frequencies
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_frequency_factor) / (scaling.high_frequency_factor - scaling.low_frequency_factor)
    kept = jnp.clip(kept, 0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / scaling.factor


def rotary_angles(
    positions: Int[Array, "B T"], frequencies: Float[Array, " C/2"]
) -> tuple[Float[Array, "B T C/2"], Float[Array, "B T C/2"]]:
    """Cosine and sine of every position's angles, float32."""
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    heads: Float[Array, "B T H C"], cosine: Float[Array, "B T C/2"], sine: Float[Array, "B T C/2"]
) -> Float[Array, "B T H C"]:
    """Turns every head by its position's angles; computed in float32."""
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(heads.dtype)
