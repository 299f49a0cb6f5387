"""Data sets that TensorFlow Datasets itself prepares, in array_record files and without TensorFlow."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = ("tabby_cat", "dog")


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures with every kind of text beside them."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    """There are no checksums beside the code, and looking for them takes a package that TFDS does not install."""

    def __init__(self, examples: Sequence[dict[str, Any]], **settings: Any) -> None:
        self._made = examples
        super().__init__(**settings)

    def _info(self) -> tfds.core.DatasetInfo:
        kinds = tfds.features
        asked = {"question": kinds.Text(), "answers": kinds.Sequence(kinds.Text())}
        return tfds.core.DatasetInfo(
            builder=self,
            features=kinds.FeaturesDict(
                {
                    "image": kinds.Image(shape=(None, None, 3)),
                    "captions": kinds.Sequence({"text": kinds.Text(), "id": np.int64}),
                    "title": kinds.Text(),
                    "asked": kinds.FeaturesDict(asked),
                    "label": kinds.ClassLabel(names=list(CLASSES)),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, made in enumerate(self._made):
            yield number, made | {"image": io.BytesIO(made["image"])}


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), 9 * number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def example(number: int, **changes: Any) -> dict[str, Any]:
    captions = [{"text": f"caption {number} {other}", "id": other} for other in range(3)]
    values = {
        "image": png(number),
        "captions": captions,
        "title": f"title {number}",
        "asked": {"question": f"what is {number}?", "answers": ["one", "two", "two"]},
        "label": number % 2,
    }
    return values | changes


def write_pictures(folder: Path, examples: Sequence[dict[str, Any]], file_format: str = "array_record") -> None:
    """Prepares `tiny_pictures:1.0.0` below a folder."""
    tfds.disable_progress_bar()
    TinyPictures(examples, data_dir=str(folder), file_format=file_format).download_and_prepare()
