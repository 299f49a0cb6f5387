"""What a decoder's blocks are given of a row's images, beside the embeddings of its tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Media(NamedTuple):
    """A row's images as features, and which of them each token sees."""

    features: Float[Array, "B N Q E"]
    latest: Int[Array, "B T"]
    """The slot of the latest image at or before a token within its segment; -1: there is none."""
    at_image: Bool[Array, "B T"] | None
    """Which tokens are of an image; None: none of them is, and nothing is computed for them."""

    def after(self, latest: Int[Array, " B"]) -> "Media":
        """For tokens of text that follow a prompt, one a row; `latest` is that of the prompt's end."""
        return self._replace(latest=latest[:, None], at_image=None)


def latest_images(
    image_index: Int[Array, "B T"], segment_ids: Int[Array, "B T"], slot_features: int
) -> Int[Array, "B T"]:
    """`Media.latest` of packed rows: no token sees an image of another segment, or a later one.

    Args:
        image_index: as in `Batch`: slot * slot_features + feature, or -1.
        segment_ids: as in `Batch`.
        slot_features: positions that one image takes.
    """
    places = jnp.arange(image_index.shape[1])
    latest = jax.lax.cummax(jnp.where(image_index < 0, -1, places), axis=1)
    there = jnp.maximum(latest, 0)
    same_segment = jnp.take_along_axis(segment_ids, there, axis=1) == segment_ids
    slots = jnp.take_along_axis(image_index, there, axis=1) // slot_features
    return jnp.where((latest >= 0) & same_segment, slots, -1)


def latest_mask(latest: Int[Array, "B T"], slots: int, slot_features: int) -> Bool[Array, "B 1 T S"]:
    """Over the features of all slots, end to end: each token sees those of its latest image."""
    slot_of_feature = jnp.arange(slots * slot_features) // slot_features
    return (latest[:, :, None] == slot_of_feature)[:, None]


def where_image(
    at_image: Bool[Array, "B T"], images: Float[Array, "B T ..."], text: Float[Array, "B T ..."]
) -> Float[Array, "B T ..."]:
    """What stands for the tokens of images, and what for the others."""
    return jnp.where(at_image.reshape(*at_image.shape, *(1,) * (text.ndim - 2)), images, text)
