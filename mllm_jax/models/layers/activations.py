"""Activation functions by the name a config gives them."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
from jaxtyping import Array, Float

ActivationName = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "linear"]


def quick_gelu(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """CLIP's approximation of GELU: x * sigmoid(1.702 x)."""
    return inputs * jax.nn.sigmoid(1.702 * inputs)


ACTIVATIONS: dict[ActivationName, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "linear": lambda inputs: inputs,
}
