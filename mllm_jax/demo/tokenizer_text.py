"""The demo's tokenizer, and what it is trained on: the words of captions, and of conversations in the chat template."""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.tokenizers.training import TokenizerTrainingConfig
from data_pipelines.transforms.templates import VICUNA_SYSTEM
from mllm_jax.demo.questions import conversation, inventory, transcription
from mllm_jax.demo.scenes import Scene

# Digits are not split off: each is one piece with the space before it.
TOKENIZER = TokenizerTrainingConfig(vocabulary_size=704, split_digits=False, special_tokens=("<image>",))

WORD = re.compile(r"\[?\d\.\d\d|[A-Za-z]+|\d|[^\w\s]")
"""A coordinate (a box's first one with its bracket), a word, a digit or a sign."""


def tokenizer_lines(scenes: Iterable[Scene], random: np.random.Generator) -> Iterator[str]:
    """Every word that training will meet, about as often, a line each, so that each becomes one piece.

    Whole sentences would make pieces such as `7?`, which have nothing in common with `7`. A first word also comes
    behind a sign, that is without the space before it, as it stands behind an image.
    """
    for scene in scenes:
        captions = (transcription(scene), inventory(scene, random))
        turns = [f"{turn.text} ASSISTANT: {turn.answer} USER:" for turn in conversation(scene, random)]
        for said in (*captions, VICUNA_SYSTEM, *turns):
            words = WORD.findall(said)
            yield f".{words[0]}"
            yield from words
