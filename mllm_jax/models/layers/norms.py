"""Normalisation layers; statistics and scaling are float32, the result has the compute dtype."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from mllm_jax.models.layers.initializers import named

NormName = Literal["rms", "rms_one_plus", "layer"]


def layer_norm(epsilon: float, dtype: Any, param_dtype: Any, name: str | None = None, axis: str = "embed") -> nn.Module:
    """LayerNorm over the last axis (the model width), with scale and bias."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        # E[x^2] - E[x]^2 loses digits when the mean is large, as it is in the residual stream of a ViT.
        use_fast_variance=False,
        scale_init=named(nn.initializers.ones, axis),
        bias_init=named(nn.initializers.zeros, axis),
        name=name,
    )


def rms_norm(epsilon: float, dtype: Any, param_dtype: Any, name: str | None = None, axis: str = "embed") -> nn.Module:
    """RMSNorm over the last axis (https://arxiv.org/abs/1910.07467), with scale."""
    return nn.RMSNorm(
        epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, scale_init=named(nn.initializers.ones, axis), name=name
    )


class OnePlusRMSNorm(nn.Module):
    """RMSNorm whose parameter is the scale's deviation from one (Gemma), which bfloat16 keeps more digits of."""

    epsilon: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis: str = "embed"
    """Logical name of the axis."""

    @nn.compact
    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        scale = self.param("scale", named(nn.initializers.zeros, self.axis), inputs.shape[-1:], self.param_dtype)
        inputs = inputs.astype(jnp.float32)
        normed = inputs * jax.lax.rsqrt(jnp.mean(jnp.square(inputs), axis=-1, keepdims=True) + self.epsilon)
        return (normed * (1.0 + scale.astype(jnp.float32))).astype(self.dtype)


def one_plus_rms_norm(
    epsilon: float, dtype: Any, param_dtype: Any, name: str | None = None, axis: str = "embed"
) -> nn.Module:
    """An `OnePlusRMSNorm`, called as the other two."""
    return OnePlusRMSNorm(epsilon, dtype=dtype, param_dtype=param_dtype, axis=axis, name=name)


NORMS: dict[NormName, Callable[..., nn.Module]] = {
    "rms": rms_norm,
    "rms_one_plus": one_plus_rms_norm,
    "layer": layer_norm,
}


def unit(vectors: Float[Array, "*B E"]) -> Float32[Array, "*B E"]:
    """Vectors of length 1, in f32; a vector of zeros stays one."""
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
