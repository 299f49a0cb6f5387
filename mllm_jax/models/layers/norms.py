"""Normalisation layers; statistics and scaling are float32, the result has the compute dtype."""

from typing import Any

import flax.linen as nn

from mllm_jax.models.layers.initializers import named


def layer_norm(epsilon: float, dtype: Any, param_dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm over the model width, with scale and bias."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        # E[x^2] - E[x]^2 loses digits when the mean is large, as it is in the residual stream of a ViT.
        use_fast_variance=False,
        scale_init=named(nn.initializers.ones, "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
        name=name,
    )


def rms_norm(epsilon: float, dtype: Any, param_dtype: Any, name: str | None = None) -> nn.RMSNorm:
    """RMSNorm over the model width (https://arxiv.org/abs/1910.07467), with scale."""
    return nn.RMSNorm(
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_init=named(nn.initializers.ones, "embed"),
        name=name,
    )
