"""Which number format is used where."""

from typing import Literal

import jax.numpy as jnp

from data_pipelines.config_class import Config
from mllm_jax.models.layers.quantised import KERNEL_FORMATS, KernelFormat, KernelFormatName

DtypeName = Literal["float32", "bfloat16"]


class PrecisionConfig(Config):
    """Formats of stored and computed numbers. Norms, softmax and logits are float32 whatever is chosen here."""

    parameters: DtypeName = "float32"
    """Format of the parameters that train (and of their optimizer state)."""
    frozen: Literal[DtypeName, KernelFormatName] = "float32"
    """Format in which parameters that do not train are kept. With int8 or int4, linear maps' kernels alone are, rounded
    from bfloat16; all others (embeddings, norms, experts, the output projection) are kept in bfloat16."""
    compute: DtypeName = "bfloat16"
    """Format of activations and of the operands of matrix products."""

    @property
    def parameter_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.parameters)

    @property
    def frozen_dtype(self) -> jnp.dtype:
        return jnp.dtype("bfloat16" if self.frozen in KERNEL_FORMATS else self.frozen)

    @property
    def frozen_kernels(self) -> KernelFormat | None:
        """How kernels that do not train are rounded; None: they are not."""
        return KERNEL_FORMATS.get(self.frozen)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute)
