"""Learned prefixes that a layer's queries read beside the tokens, through a softmax of their own and a gate.

LLaMA-Adapter, https://arxiv.org/abs/2303.16199; with images as in its second version, https://arxiv.org/abs/2304.15010.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mllm_jax.models.layers.initializers import named
from mllm_jax.models.layers.media import Media


class Prefix(NamedTuple):
    """One layer's."""

    embeddings: Float[Array, "B S D"]
    """What the layer makes keys and values of, which have no positions."""
    mask: Bool[Array, "B 1 T S"] | None
    """None: every token sees all."""
    gate: Float[Array, " heads"]
    """Factor of what is read, one a head, or one for all of them."""


class Prefixes(NamedTuple):
    """Those of all layers; a layer without has zeros, behind a closed gate."""

    embeddings: Float[Array, "L P D"]
    gates: Float[Array, "L heads"]
    media: Media | None
    """Images whose features are added to the prefix that their tokens see; None: images change nothing."""

    def of(self, layer: Int[Array, ""] | int, rows: int) -> Prefix:
        """The prefix of one layer, for a batch of `rows`."""
        own = self.embeddings[layer]
        length, width = own.shape
        if self.media is None:
            return Prefix(jnp.broadcast_to(own, (rows, length, width)), None, self.gates[layer])
        features, latest = self.media.features.astype(own.dtype), self.media.latest
        slots = features.shape[1]
        # Tokens before any image read the last of these, which is the layer's own.
        features = jnp.pad(features, ((0, 0), (0, 1), (0, 0), (0, 0)))
        slot_of_place = jnp.arange((slots + 1) * length) // length
        seen = jnp.where(latest < 0, slots, latest)
        mask = (seen[:, :, None] == slot_of_place)[:, None]
        return Prefix((own + features).reshape(rows, (slots + 1) * length, width), mask, self.gates[layer])


class PrefixTable(nn.Module):
    """The prefixes and gates of the last `layers` of a decoder's layers."""

    layers: int
    length: int
    width: int
    gates: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, depth: int) -> tuple[Float[Array, "L P D"], Float[Array, "L heads"]]:
        """The embeddings and, as they are stored, the gates of all `depth` layers."""
        shape = (self.layers, self.length, self.width)
        normal = named(nn.initializers.normal(1.0), "layers", None, "embed")
        embeddings = self.param("embeddings", normal, shape, self.param_dtype).astype(self.dtype)
        closed = named(nn.initializers.zeros, "layers", None)
        gates = self.param("gates", closed, (self.layers, self.gates), self.param_dtype).astype(self.dtype)
        without = depth - self.layers
        return jnp.pad(embeddings, ((without, 0), (0, 0), (0, 0))), jnp.pad(gates, ((without, 0), (0, 0)))
