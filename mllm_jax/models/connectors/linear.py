"""One linear layer from encoder features to decoder embeddings (LLaVA 1.0)."""

from typing import Literal

from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.connectors.layers import LayersConfig


class LinearConfig(LayersConfig):
    """An `mlp` of one layer, under its own name."""

    kind: Literal["linear"] = "linear"
    depth: Literal[1] = 1

    def tokens(self, grid: FeatureGrid) -> int:
        """Decoder tokens made of one image's features."""
        return grid.total
