"""Who may attend to whom. Every query may attend to at least one key, so that no softmax is empty (NaN)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def packed_mask(segment_ids: Int[Array, "B T"], window: int | None = None) -> Bool[Array, "B 1 T T"]:
    """Causal inside a segment, closed between segments.

    Padding (segment 0) attends to the padding before it and to itself; nothing reads what comes of it. With a window
    a token sees the last `window` tokens, itself included.
    """
    same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    slots = jnp.arange(segment_ids.shape[1])
    return (same_segment & _causal(slots[None], slots, window))[:, None]


def cached_mask(slots: Int[Array, "B T"], capacity: int, window: int | None = None) -> Bool[Array, "B 1 T S"]:
    """Causal over a cache whose slot `s` holds a row's token number `s`; `slots` are those of the queries."""
    return _causal(slots, jnp.arange(capacity), window)[:, None]


def _causal(queries: Int[Array, "B T"], keys: Int[Array, " S"], window: int | None) -> Bool[Array, "B T S"]:
    back = queries[:, :, None] - keys
    return back >= 0 if window is None else (back >= 0) & (back < window)
