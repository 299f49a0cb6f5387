"""A record as one image and its text, for objectives that compare the two and have no decoder read them.

The text is a segment of a row, in the tokens of whatever reads it, and the image stands beside it: it takes a slot and
no token. So the segment of a row with number n belongs to the slot with number n - 1.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.record import ImagePart, Record, TextPart
from data_pipelines.rendered import ImageLayout, RenderedRecord, RenderError
from data_pipelines.tokenizer import Tokenizer

BESIDE = ImageLayout(slots=1, index=np.zeros(0, np.int32))
"""An image of one slot that takes no token."""


@dataclass(frozen=True)
class CaptionEncoder:
    """Text to its tokens, between those that stand before and after it."""

    tokenizer: Tokenizer
    length: int
    """Longest text in tokens, those around it included; of a longer one the end is cut."""
    first: tuple[int, ...]
    """Before every text."""
    last: tuple[int, ...]
    """After it."""

    def __call__(self, text: str) -> np.ndarray:
        """i32[s], s at most `length`."""
        kept = self.tokenizer.encode(text, start=True)[: self.length - len(self.first) - len(self.last)]
        return np.array([*self.first, *kept, *self.last], np.int32)


def render_pair(record: Record, encode: CaptionEncoder) -> RenderedRecord:
    """A record of one image: its text is the first answer that is learned, whatever the user asks.

    Raises:
        RenderError: the record has no image or several, or no text.
    """
    images = tuple(part for turn in record.turns for part in turn.parts if isinstance(part, ImagePart))
    if len(images) != 1:
        raise RenderError("not_a_pair", f"{len(images)} images, expected one")
    text = caption(record)
    if not text:
        raise RenderError("no_caption", "no learned answer with text")
    tokens = encode(text)
    predicted = np.arange(len(tokens)) > 0
    return RenderedRecord(record.key, tokens, predicted, np.zeros_like(predicted), (0,), images, (BESIDE,))


def caption(record: Record) -> str:
    """The text of the first learned answer; empty where there is none."""
    answers = (turn for turn in record.turns if turn.role == "assistant" and turn.learn)
    parts = next((turn.parts for turn in answers), ())
    return "\n".join(filter(None, (part.text.strip() for part in parts if isinstance(part, TextPart))))
