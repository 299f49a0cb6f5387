"""Tars of images whose two halves have the colours that their captions name."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.shards import ImageText, write_shards
from tests.support.run_files import TINY_RUN
from tests.support.small_tokenizers import write_tokenizer_folder

COLOURS = "abcdefgh"
"""A letter for each corner of the cube of colours."""
KINDS = len(COLOURS) ** 2
SAMPLES = 302
"""In the shards to train on; two of them are faulty."""
CAUSES = ("image_unsupported", "empty_caption")
"""Of the faults."""
BASE = """
extends: {tiny}
output: {folder}/run
model: {{tokenizer: {folder}/tokenizer, chat_template: plain}}
data:
  lanes: 4
  shuffle_window: 20
  skip_quota: 0.2
  sources:
    pairs: {{kind: webdataset, shards: "{folder}/shards/*.tar"}}
    held_out: {{kind: webdataset, shards: "{folder}/held_out/*.tar"}}
"""


def write_captioned_colours(folder: Path) -> None:
    """Writes `shards`, `held_out` (every kind once, with other noise), the decoder's `tokenizer`, and `base.yaml`.

    That is a run file to extend, with these and a model whose steps take no time.
    """
    faulty = [ImageText(b"no image", "a a", "png"), ImageText(_png(0, 0, 0), "   ", "png")]
    write_shards([*_examples(0, 150), *faulty, *_examples(150, 150)], folder / "shards")
    write_shards(_examples(1000, KINDS), folder / "held_out")
    write_tokenizer_folder(folder / "tokenizer")
    (folder / "base.yaml").write_text(BASE.format(tiny=TINY_RUN, folder=folder))


def colour_of(pixels: np.ndarray) -> str:
    """The letter of a half's colour."""
    return COLOURS[(pixels.astype(int).mean(axis=(0, 1)) > 120) @ np.array([4, 2, 1])]


def _examples(first: int, count: int) -> Iterator[ImageText]:
    for number in range(first, first + count):
        left, right = divmod(number * 13 % KINDS, len(COLOURS))
        yield ImageText(_png(left, right, number), f"{COLOURS[left]} {COLOURS[right]}", "png")


def _png(left: int, right: int, seed: int) -> bytes:
    corners = np.array([[[number >> shift & 1 for shift in (2, 1, 0)] for number in (left, right)]])
    drawn = np.repeat(np.repeat(corners, 8, axis=0), 4, axis=1) * 180 + 30
    noise = np.random.default_rng(seed).integers(-25, 26, drawn.shape)
    buffer = io.BytesIO()
    Image.fromarray((drawn + noise).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
