"""What all objectives on pairs of an image and its text have in common: what a stage must be for them, and their view
of a batch."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8
from pydantic import Field

from data_pipelines.batch import Batch
from mllm_jax.training.objective import ObjectiveBase


class PairsConfig(ObjectiveBase):
    """Each record is one image and its text; see `data_pipelines.transforms.pairs`."""

    text_tokens: int = Field(default=32, gt=2)
    """Longest text in tokens, its first and last special token included; of a longer one the end is cut."""

    segments_fill_rows: ClassVar[bool] = False

    def accumulation_problem(self, parts: int) -> str | None:
        if parts == 1:
            return None
        return (
            f"accumulate: found {parts}, expected 1: each image is told from all others of the global batch, of "
            "which a part of the rows has fewer, so that the loss would be another one"
        )

    def slot_problem(self, rows: int, row_length: int, images_per_row: int) -> str | None:
        if rows * images_per_row < 2:
            return f"images_per_row: {rows} rows of {images_per_row} image slots hold no two pairs to tell apart"
        if row_length < images_per_row * self.text_tokens:
            return (
                f"row_length: found {row_length}, expected at least {images_per_row * self.text_tokens}, for a row "
                f"has images_per_row {images_per_row} pairs, whose texts have up to objective.text_tokens "
                f"{self.text_tokens} tokens"
            )
        return None


class Pairs(NamedTuple):
    """The M = B * N image slots of a batch and the texts beside them."""

    images: UInt8[Array, "M H W 3"]
    text: Int[Array, "M S"]
    """Tokens, -1 behind the end; a place without a pair holds one token."""
    valid: Bool[Array, " M"]
    """Which places hold a pair."""


def pairs_of(batch: Batch, text_tokens: int) -> Pairs:
    """The pairs of a batch, in the order of its slots."""
    rows, slots = batch.image_mask.shape
    # Padding goes behind the last slot, where nothing is kept.
    slot = jnp.where(batch.segment_ids > 0, batch.segment_ids - 1, slots)
    empty = jnp.full((slots, text_tokens), -1, jnp.int32).at[:, 0].set(0)

    def laid_out(slot: Array, position: Array, tokens: Array) -> Array:
        return empty.at[slot, position].set(tokens, mode="drop")

    text = jax.vmap(laid_out)(slot, batch.positions, batch.tokens).reshape(rows * slots, text_tokens)
    return Pairs(batch.images.reshape(rows * slots, *batch.images.shape[2:]), text, pair_mask(batch).reshape(-1))


def pair_mask(batch: Batch) -> Bool[Array, "B N"]:
    """Which slots hold an image with a text."""
    numbers = jnp.arange(1, batch.image_mask.shape[1] + 1)
    has_text = jnp.any(batch.segment_ids[:, None] == numbers[:, None], axis=2)
    return batch.image_mask & has_text


def pair_count(batch: Batch) -> Array:
    """By what the losses of pairs are divided."""
    return jnp.sum(pair_mask(batch), dtype=jnp.float32)
