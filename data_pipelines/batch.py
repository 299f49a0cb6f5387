"""The contract between data and model: one batch of packed rows, all shapes static.

Axes: B rows, T tokens, N image slots, S tokens of an instruction, H x W pixels.
"""

from typing import Any, NamedTuple

Array = Any
"""A NumPy array on the host, a `jax.Array` on the mesh, or a `jax.ShapeDtypeStruct` in a plan."""


class Batch(NamedTuple):
    """A batch of packed rows; a pytree, because JAX treats named tuples as one.

    A row without an image runs the same program as a row full of them: unused slots hold zeros.
    """

    tokens: Array
    """i32[B, T]; at image positions the tokenizer's image token."""
    targets: Array
    """i32[B, T]; the token that follows inside the same segment, 0 where there is none."""
    loss_weights: Array
    """f32[B, T]; weight of predicting `targets` at this place, 0 where it is not supervised."""
    segment_ids: Array
    """i32[B, T]; 1, 2, ... in row order, 0 = padding."""
    positions: Array
    """i32[B, T]; restart at 0 in every segment."""
    images: Array
    """u8[B, N, H, W, 3]; raw pixels of an image or of a tile of one, normalised inside the jitted step."""
    image_mask: Array
    """bool[B, N]; which slots hold an image or a tile."""
    image_index: Array
    """i32[B, T]; slot * I + feature for an image position, where a slot makes I features; N * I for the newline at the
    end of a row of tiles; else -1."""
    answer_mask: Array
    """bool[B, T]; which tokens belong to an answer or its end of turn, learned or not. A decoder with prefix attention
    reads what stands before an answer, back to the answer before it, in both directions, and answers causally."""
    instructions: Array | None = None
    """i32[B, N, S]; what each slot's image is asked, in the connector's own tokens, -1 where there is none; None for
    models whose connector reads no text."""
    preference: Array | None = None
    """i32[B, T]; 1 in the segment of the better answer of a pair, -1 in that of the worse one, which is the next
    segment and shares its image slots; 0 in padding. None for stages that compare no answers."""
    reference: Array | None = None
    """f32[B, T]; at the first token of a segment the summed log-probability of what is supervised of it, by a reference
    model that was asked beforehand, and 0 elsewhere; None where none was."""
