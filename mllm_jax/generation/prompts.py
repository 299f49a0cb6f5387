"""Prompts as the model takes them: token ids and pixels, padded to one of a few shapes.

A program is compiled once for every shape that it meets. So that prompts of a thousand lengths do not compile a
thousand programs, sizes are rounded up to a few values (`bucket`), and the padding stands to the right, where the
segment id 0 hides it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.assemble import place_instructions
from data_pipelines.batch import Batch
from data_pipelines.rendered import ImageLayout

STEPS_PER_OCTAVE = 2
"""Sizes that a doubling is cut into: padding wastes at most a third, and 5,000 lengths make 18 shapes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one row is to continue; n is its number of tokens."""

    tokens: np.ndarray
    """i32[n]; at image positions the tokenizer's image token."""
    image_starts: tuple[int, ...] = ()
    """For each image, the index in `tokens` where its run of image tokens begins."""
    images: tuple[np.ndarray, ...] = ()
    """u8[H, W, 3] for each image, already at the encoder's size, or u8[S, H, W, 3] for one cut into tiles."""
    layouts: tuple[ImageLayout, ...] = ()
    """How each image is laid out; empty where every image takes one slot."""
    in_answer: np.ndarray | None = None
    """bool[n]; as in `RenderedRecord`, of the answers that the prompt quotes; None: it quotes none."""
    instructions: tuple[np.ndarray, ...] = ()
    """For each image, i32[s]: what it is asked, in the connector's tokens; empty for connectors that read no text."""

    @property
    def slots(self) -> int:
        """Image slots that the images take."""
        return sum(layout.slots for layout in self.layouts) if self.layouts else len(self.images)


class PaddedPrompts(NamedTuple):
    """Prompts as one batch; B may exceed the number of prompts, and rows past it are empty."""

    batch: Batch
    lengths: np.ndarray
    """i32[B]; tokens of each prompt, at least 1 so that every row has a last position."""


def bucket(size: int, smallest: int = 1) -> int:
    """Round a size up to one of two values an octave (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48 ...)."""
    size = max(size, smallest)
    power_of_two_above = 1 << (size - 1).bit_length() if size > 1 else 1
    step = max(power_of_two_above // (2 * STEPS_PER_OCTAVE), 1)
    return -(-size // step) * step


def pad_prompts(
    prompts: Sequence[Prompt],
    image_tokens: int,
    image_size: tuple[int, int],
    rows: int,
    instruction_tokens: int = 0,
) -> PaddedPrompts:
    """Stack prompts into a batch of `rows` rows.

    Args:
        prompts: at most `rows` prompts.
        image_tokens: how many tokens the image of one slot takes.
        image_size: height and width of a slot's image in pixels.
        rows: B, the number of rows of the batch.
        instruction_tokens: the longest instruction that the connector reads; 0: it reads none.
    """
    tokens_per_row = bucket(max(len(prompt.tokens) for prompt in prompts), smallest=16)
    slots = max(prompt.slots for prompt in prompts)
    whole_slot = ImageLayout(1, np.arange(image_tokens, dtype=np.int32))
    tokens = np.zeros((rows, tokens_per_row), np.int32)
    segment_ids = np.zeros((rows, tokens_per_row), np.int32)
    image_index = np.full((rows, tokens_per_row), -1, np.int32)
    answer_mask = np.zeros((rows, tokens_per_row), bool)
    images = np.zeros((rows, slots, *image_size, 3), np.uint8)
    image_mask = np.zeros((rows, slots), bool)
    instructions = _no_instructions(prompts, (rows, slots), instruction_tokens)
    lengths = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        lengths[row] = length = len(prompt.tokens)
        tokens[row, :length] = prompt.tokens
        segment_ids[row, :length] = 1
        if prompt.in_answer is not None:
            answer_mask[row, :length] = prompt.in_answer
        slot = 0
        layouts = prompt.layouts or (whole_slot,) * len(prompt.images)
        place_instructions(instructions, row, 0, layouts, prompt.instructions)
        for start, image, layout in zip(prompt.image_starts, prompt.images, layouts, strict=True):
            images[row, slot : slot + layout.slots] = image
            image_mask[row, slot : slot + layout.slots] = True
            image_index[row, start : start + len(layout.index)] = layout.placed(slot, slots, image_tokens)
            slot += layout.slots
    segment_ids[len(prompts) :, 0] = 1
    batch = Batch(
        tokens=tokens,
        targets=np.zeros_like(tokens),
        loss_weights=np.zeros(tokens.shape, np.float32),
        segment_ids=segment_ids,
        positions=np.broadcast_to(np.arange(tokens_per_row, dtype=np.int32), tokens.shape) * (segment_ids > 0),
        images=images,
        image_mask=image_mask,
        image_index=image_index,
        answer_mask=answer_mask,
        instructions=instructions,
    )
    return PaddedPrompts(batch, lengths)


def _no_instructions(prompts: Sequence[Prompt], slots: tuple[int, int], most: int) -> np.ndarray | None:
    """Room for the longest instruction of at most `most` tokens: i32[B, N, S], all padding."""
    if not most:
        return None
    longest = max((len(instruction) for prompt in prompts for instruction in prompt.instructions), default=1)
    return np.full((*slots, min(bucket(longest), most)), -1, np.int32)
