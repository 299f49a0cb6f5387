"""Who may attend to whom. Every query may attend to at least one key, so that no softmax is empty (NaN)."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int


class PackedMask(struct.PyTreeNode):
    """Who sees whom in packed rows, told in numbers a token; `dense` is what it comes to."""

    segment_ids: Int[Array, "B T"]
    """0 is padding."""
    blocks: Int[Array, "B T"] | None = None
    """Those of `prompt_blocks`, whose tokens see one another; None: every token sees those before it alone."""
    window: Int[Array, "*kinds"] | None = None
    """Tokens that a token sees, itself included: of one kind of layers, or of all; None: all before it."""

    def of_kind(self, kind: Int[Array, ""] | int) -> "PackedMask":
        """The mask of one kind of layers, of a mask that has the windows of all."""
        return self if self.window is None else self.replace(window=self.window[kind])

    def dense(self) -> Bool[Array, "B 1 T T"]:
        """All pairs of a query and a key."""
        return packed_mask(self.segment_ids, self.window, self.blocks)

    def last_seen(self) -> Int[Array, "B T"]:
        """Place of the last token that each token sees in its segment: itself, or the last of its block."""
        places = jnp.broadcast_to(jnp.arange(self.segment_ids.shape[1]), self.segment_ids.shape)
        if self.blocks is None:
            return places
        ends = self.blocks != jnp.pad(self.blocks[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
        return jax.lax.cummin(jnp.where(ends, places, places.shape[1]), axis=1, reverse=True)

    def first_seen(self) -> Int[Array, "B T"]:
        """Place of the first token that each token may see, were all one segment."""
        places = jnp.broadcast_to(jnp.arange(self.segment_ids.shape[1]), self.segment_ids.shape)
        if self.window is None:
            return jnp.zeros_like(places)
        first = jnp.maximum(places - self.window + 1, 0)
        if self.blocks is None:
            return first
        starts = self.blocks != jnp.pad(self.blocks[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return jnp.minimum(first, jax.lax.cummax(jnp.where(starts, places, 0), axis=1))


def prompt_blocks(segment_ids: Int[Array, "B T"], answer_mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Numbers of the blocks whose tokens see one another: what stands before an answer, back to the answer before it.

    A token of an answer is a block by itself. No block reaches over the border of a segment, nor into the padding.
    """
    follows_answer = jnp.pad(answer_mask[:, :-1], ((0, 0), (1, 0)))
    opens_segment = segment_ids != jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jnp.cumsum(answer_mask | follows_answer | opens_segment, axis=1)


def packed_mask(
    segment_ids: Int[Array, "B T"],
    window: int | Int[Array, ""] | None = None,
    blocks: Int[Array, "B T"] | None = None,
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


def _causal(
    queries: Int[Array, "B T"], keys: Int[Array, " S"], window: int | Int[Array, ""] | None
) -> Bool[Array, "B T S"]:
    back = queries[:, :, None] - keys
    return back >= 0 if window is None else (back >= 0) & (back < window)
