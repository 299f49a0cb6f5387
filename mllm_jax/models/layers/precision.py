"""Which number format is used where."""

from typing import Literal

import jax.numpy as jnp

from data_pipelines.config_class import Config

DtypeName = Literal["float32", "bfloat16"]


class PrecisionConfig(Config):
    """Formats of stored and computed numbers. Norms, softmax and logits are float32 whatever is chosen here."""

    parameters: DtypeName = "float32"
    """Format of the parameters that train (and of their optimizer state)."""
    frozen: DtypeName = "float32"
    """Format in which parameters that do not train are kept."""
    compute: DtypeName = "bfloat16"
    """Format of activations and of the operands of matrix products."""

    @property
    def parameter_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.parameters)

    @property
    def frozen_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.frozen)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute)
