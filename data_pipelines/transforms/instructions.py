"""What a connector reads beside each image: the instruction that the image comes with, in the connector's own tokens.

An image's instruction is the text of the user turn that holds it; of an image that an assistant shows, the text of the
last user turn before it. It is never an answer. Nothing of the chat template is part of it, whatever the template shows
the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.record import ImagePart, Record, TextPart, Turn
from data_pipelines.rendered import RenderedRecord
from data_pipelines.tokenizer import Tokenizer


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids before and after a text that stands alone."""
    named = tokenizer.surrounds
    first, last = ([tokenizer.special_id(named[role])] if role in named else [] for role in ("cls_token", "sep_token"))
    return first, last


@dataclass(frozen=True)
class InstructionEncoder:
    """Text to what the connector reads: the tokenizer's first token, the end of the text, its last token."""

    tokenizer: Tokenizer
    length: int
    """Longest instruction in tokens, both special tokens included; of a longer one the beginning is cut."""

    def __call__(self, text: str) -> np.ndarray:
        """i32[s], s at most `length`."""
        first, last = around(self.tokenizer)
        ids = self.tokenizer.encode(text, start=True)
        kept = ids[max(0, len(first) + len(ids) + len(last) - self.length) :]
        return np.array([*first, *kept, *last], np.int32)


def instructed(rendered: RenderedRecord, record: Record, encode: InstructionEncoder | None) -> RenderedRecord:
    """A rendered record with the instructions of its images; None: as it is."""
    if encode is None:
        return rendered
    texts = image_instructions(record.turns)[: len(rendered.images)]
    return replace(rendered, instructions=tuple(encode(text) for text in texts))


def image_instructions(turns: Sequence[Turn]) -> list[str]:
    """The instruction of every image, in the order in which the images stand in the conversation."""
    found: list[str] = []
    asked = ""
    for turn in turns:
        if turn.role == "user":
            asked = "\n".join(filter(None, (part.text.strip() for part in turn.parts if isinstance(part, TextPart))))
        found.extend(asked for part in turn.parts if isinstance(part, ImagePart))
    return found
