"""The connectors a run file can choose from, by `kind`."""

from typing import Annotated, Any

import flax.linen as nn
from pydantic import Field

from mllm_jax.models.connectors.linear import LinearConfig, LinearConnector
from mllm_jax.models.connectors.mlp import MLPConfig, MLPConnector

ConnectorConfig = Annotated[LinearConfig | MLPConfig, Field(discriminator="kind")]

CONNECTORS: dict[str, type[nn.Module]] = {"linear": LinearConnector, "mlp": MLPConnector}


def make_connector(config: ConnectorConfig, width: int, dtype: Any, param_dtype: Any) -> nn.Module:
    """The module of a connector's config, for a decoder of `width`."""
    return CONNECTORS[config.kind](config, width, dtype=dtype, param_dtype=param_dtype)
