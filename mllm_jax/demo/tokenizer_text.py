"""The lines that the demo's tokenizer is trained on: captions, and conversations in the words of the chat template."""

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.transforms.templates import VICUNA_SYSTEM
from mllm_jax.demo.questions import caption, conversation, keyed_caption
from mllm_jax.demo.scenes import Scene


def tokenizer_lines(scenes: Iterable[Scene], random: np.random.Generator) -> Iterator[str]:
    """Every word that training will meet, about as often as it will meet it, so that each becomes one piece."""
    for scene in scenes:
        yield caption(scene)
        yield keyed_caption(scene, random)
        yield VICUNA_SYSTEM
        for turn in conversation(scene, random):
            yield f"USER: {turn.text} ASSISTANT: {turn.answer}"
