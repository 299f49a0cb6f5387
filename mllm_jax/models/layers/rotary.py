"""Rotary position embedding (https://arxiv.org/abs/2104.09864), pairing dimension i with i + C/2 as LLaMA does."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.models.layers.rotary_scaling import RotaryScaling, plain_frequencies


def rotary_frequencies(
    width: int,
    theta: float,
    scaling: RotaryScaling | None = None,
    lengths: Int[Array, "B T"] | None = None,
) -> Float[Array, "*tokens half"]:
    """Angle in radians by which each pair of dimensions turns at every position.

    Args:
        width: dimensions of a head that are turned.
        theta: base of the frequencies.
        scaling: how they are slowed to read beyond the length trained at.
        lengths: of each token's segment, for a scaling that depends on it (`scaling.needs_lengths`).
    """
    if scaling is None:
        return plain_frequencies(width, theta)
    return scaling.frequencies(width, theta, lengths)


def segment_lengths(segment_ids: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """For every token the length of its segment so far: one more than the last position of it in the row."""
    same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.max(jnp.where(same_segment, positions[:, None, :], 0), axis=-1) + 1


def rotary_angles(
    positions: Int[Array, "B T"] | Int[Array, "B T half"],
    frequencies: Float[Array, "*tokens half"],
    magnitude: float = 1.0,
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of every position's angles times `magnitude`, float32; pairs may have positions of their own."""
    own = positions if positions.ndim == 3 else positions[..., None]
    angles = own.astype(jnp.float32) * frequencies
    return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def rotate(
    heads: Float[Array, "B T H C"], cosine: Float[Array, "B T half"], sine: Float[Array, "B T half"]
) -> Float[Array, "B T H C"]:
    """Turns the first 2 * half dimensions of every head by its position's angles; computed in float32."""
    width = 2 * cosine.shape[-1]
    first, second = jnp.split(heads[..., :width].astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    rest = [heads[..., width:].astype(jnp.float32)] if width < heads.shape[-1] else []
    return jnp.concatenate(turned + rest, axis=-1).astype(heads.dtype)
