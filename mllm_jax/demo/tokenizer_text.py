"""The demo's tokenizer, and what it is trained on: the words of captions, and of conversations in the chat template."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.tokenizers.reading import TOKENIZER_CONFIG
from data_pipelines.tokenizers.training import TokenizerTrainingConfig, train_sentencepiece
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


def write_tokenizer(path: Path, scenes: Iterable[Scene], random: np.random.Generator) -> None:
    """Trains the tokenizer on what is said of the scenes and writes its SentencePiece model."""
    path.write_bytes(train_sentencepiece(tokenizer_lines(scenes, random), TOKENIZER))


def write_text_tokenizer(folder: Path, model: Path) -> None:
    """Writes the tokenizer of a SentencePiece model as one with a token before and after each text, as BERT's has: a
    Q-Former reads texts with it."""
    tokenizer = load_tokenizer(model, ())
    files = tokenizer.files()
    around = {"cls_token": tokenizer.bos_token, "sep_token": tokenizer.eos_token}
    files[TOKENIZER_CONFIG] = json.dumps(json.loads(files[TOKENIZER_CONFIG]) | around, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
