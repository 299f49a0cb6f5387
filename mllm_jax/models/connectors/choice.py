"""The connectors a run file can choose from, by `kind`."""

from typing import Annotated, Any

import flax.linen as nn
from pydantic import Field

from mllm_jax.models.connectors.average_pool import AveragePoolConfig, AveragePoolConnector
from mllm_jax.models.connectors.convolution import ConvolutionConfig, ConvolutionConnector
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig, GatedCrossAttentionConnector
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.connectors.mlp import MLPConfig, MLPConnector
from mllm_jax.models.connectors.perceiver import PerceiverConfig, PerceiverConnector
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig, PixelShuffleConnector
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig, PrefixAdapterConnector
from mllm_jax.models.connectors.q_former import QFormerConfig, QFormerConnector, QFormerTextConfig
from mllm_jax.models.connectors.visual_expert import VisualExpertConfig, VisualExpertConnector

ConnectorConfig = Annotated[
    LinearConfig
    | MLPConfig
    | PixelShuffleConfig
    | AveragePoolConfig
    | ConvolutionConfig
    | PerceiverConfig
    | QFormerConfig
    | GatedCrossAttentionConfig
    | PrefixAdapterConfig
    | VisualExpertConfig,
    Field(discriminator="kind"),
]

CONNECTORS: dict[str, type[nn.Module]] = {
    "linear": MLPConnector,
    "mlp": MLPConnector,
    "pixel_shuffle": PixelShuffleConnector,
    "average_pool": AveragePoolConnector,
    "convolution": ConvolutionConnector,
    "perceiver": PerceiverConnector,
    "q_former": QFormerConnector,
    "gated_cross_attention": GatedCrossAttentionConnector,
    "prefix_adapter": PrefixAdapterConnector,
    "visual_expert": VisualExpertConnector,
}

AddedWeights = GatedCrossAttentionConfig | PrefixAdapterConfig | VisualExpertConfig
"""Connectors that put weights of their own into the decoder."""


def make_connector(config: ConnectorConfig, grid: FeatureGrid, width: int, dtype: Any, param_dtype: Any) -> nn.Module:
    """The module of a connector's config, for features that lie as `grid` and a decoder of `width`."""
    return CONNECTORS[config.kind](config, grid, width, dtype=dtype, param_dtype=param_dtype)


def added_weights(config: ConnectorConfig) -> AddedWeights | None:
    """The config of the weights that a connector puts into the decoder; None: it puts none."""
    return config if isinstance(config, AddedWeights) else None


def is_merged(config: ConnectorConfig) -> bool:
    """Whether an image's features stand among the embeddings, where its tokens are."""
    return not isinstance(config, GatedCrossAttentionConfig | PrefixAdapterConfig)


def text_side(config: ConnectorConfig) -> QFormerTextConfig | None:
    """How a connector reads the instruction of an image; None: it reads none."""
    return config.text if isinstance(config, QFormerConfig) else None


def instruction_tokens(config: ConnectorConfig) -> int:
    """Longest instruction in tokens that a connector reads with an image; 0: it reads none."""
    text = text_side(config)
    return 0 if text is None else text.instruction_tokens
