"""Initial values of parameters, boxed with the logical names of their axes."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn


def named(initializer: Callable[..., Any], *axes: str | None) -> Callable[..., Any]:
    """An initializer whose parameter carries one logical axis name (or None) for each of its axes."""
    return nn.with_logical_partitioning(initializer, axes)
