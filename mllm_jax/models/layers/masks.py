"""Who may attend to whom. Every query may attend to at least one key, so that no softmax is empty (NaN)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def packed_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Causal inside a segment, closed between segments.

    Padding (segment 0) attends to the padding before it and to itself; nothing reads what comes of it.
    """
    same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    length = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return (same_segment & causal)[:, None]


def cached_mask(slots: Int[Array, "B T"], capacity: int) -> Bool[Array, "B 1 T S"]:
    """Causal over a cache whose slot `s` holds a row's token number `s`; `slots` are those of the queries."""
    return (jnp.arange(capacity) <= slots[:, :, None])[:, None]
