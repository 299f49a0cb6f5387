"""What a chat template makes of a record: token ids, what is supervised, and where each image's tokens stand."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.record import ImagePart


class RenderError(ValueError):
    """A record that a chat template cannot express; a deterministic function of the record, so it may be skipped.

    `cause` is one word for counting ("turn_order", "token_boundary"); `detail` says what was found.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RenderedRecord:
    """A record as one segment of a row; n is its number of tokens."""

    key: str
    tokens: np.ndarray
    """i32[n]; at image positions the tokenizer's image token."""
    supervised: np.ndarray
    """bool[n]; whether the loss covers *predicting* this token."""
    image_starts: tuple[int, ...]
    """For each image, the index in `tokens` where its run of image placeholder tokens begins; ascending."""
    images: tuple[ImagePart, ...]
    """The images in the order of their runs."""
