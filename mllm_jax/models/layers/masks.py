"""Who may attend to whom. Every query may attend to at least one key, so that no softmax is empty (NaN)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def prompt_blocks(segment_ids: Int[Array, "B T"], answer_mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Numbers of the blocks whose tokens see one another: what stands before an answer, back to the answer before it.

    A token of an answer is a block by itself. No block reaches over the border of a segment, nor into the padding.
    """
    follows_answer = jnp.pad(answer_mask[:, :-1], ((0, 0), (1, 0)))
    opens_segment = segment_ids != jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jnp.cumsum(answer_mask | follows_answer | opens_segment, axis=1)


def packed_mask(
    segment_ids: Int[Array, "B T"], window: int | None = None, blocks: Int[Array, "B T"] | None = None
) -> Bool[Array, "B 1 T T"]:
    """Causal inside a segment, closed between segments.

    Padding (segment 0) attends to the padding before it and to itself; nothing reads what comes of it. With a window
    a token sees the last `window` tokens, itself included. With blocks it sees all of its own besides, whatever the
    window.
    """
    same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    slots = jnp.arange(segment_ids.shape[1])
    seen = _causal(slots[None], slots, window)
    if blocks is not None:
        seen |= blocks[:, :, None] == blocks[:, None, :]
    return (same_segment & seen)[:, None]


def cached_mask(
    slots: Int[Array, "B T"], capacity: int, window: int | None = None, blocks: Int[Array, "B T"] | None = None
) -> Bool[Array, "B 1 T S"]:
    """Causal over a cache whose slot `s` holds a row's token number `s`; `slots` and `blocks` are the queries'."""
    keys = jnp.arange(capacity)
    seen = _causal(slots, keys, window)
    if blocks is not None:
        places = keys - slots[:, :1]
        is_new = (places >= 0) & (places < slots.shape[1])
        block_of_key = jnp.take_along_axis(blocks, jnp.clip(places, 0, slots.shape[1] - 1), axis=1)
        seen |= is_new[:, None] & (blocks[:, :, None] == block_of_key[:, None])
    return seen[:, None]


def virtual_mask(segment_ids: Int[Array, "B T"], count: int, window: int | None = None) -> Bool[Array, "B 1 T V"]:
    """Over `count` virtual tokens, which stand before every segment: a token sees all, or those inside its window."""
    slots = jnp.arange(segment_ids.shape[1])
    opens_segment = segment_ids != jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    place = slots - jax.lax.cummax(jnp.where(opens_segment, slots, 0), axis=1)
    return _causal(count + place, jnp.arange(count), window)[:, None]


def _causal(queries: Int[Array, "B T"], keys: Int[Array, " S"], window: int | None) -> Bool[Array, "B T S"]:
    back = queries[:, :, None] - keys
    return back >= 0 if window is None else (back >= 0) & (back < window)
