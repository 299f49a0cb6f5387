"""Normalisation layers; statistics and scaling are float32, the result has the compute dtype."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn

from mllm_jax.models.layers.initializers import named

NormName = Literal["layer", "rms"]


def layer_norm(
    epsilon: float, dtype: Any, param_dtype: Any, name: str | None = None, axis: str = "embed"
) -> nn.LayerNorm:
    """LayerNorm over the last axis, called `axis`, with scale and bias."""
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


def rms_norm(epsilon: float, dtype: Any, param_dtype: Any, name: str | None = None, axis: str = "embed") -> nn.RMSNorm:
    """RMSNorm over the last axis, called `axis` (https://arxiv.org/abs/1910.07467), with scale."""
    return nn.RMSNorm(
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_init=named(nn.initializers.ones, axis),
        name=name,
    )


NORMS: dict[NormName, Callable[..., nn.Module]] = {"layer": layer_norm, "rms": rms_norm}
