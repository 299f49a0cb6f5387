"""The demo's data on disk: captioned shards for alignment, conversations for instruction, pairs of answers for
preference tuning, questions for the test."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.shards import ImageText, write_shards
from mllm_jax.demo.questions import Question, caption, compared, conversation, one_of_each_kind
from mllm_jax.demo.scenes import Scene, SceneConfig, Split, compose, load_digit_images

PAIRS_PER_SHARD = 2000


class DatasetConfig(Config):
    """How much data the demo makes."""

    seed: int = Field(default=0, ge=0)
    scenes: SceneConfig = SceneConfig()
    pairs: int = Field(default=12000, gt=0)
    """Captioned scenes to align on."""
    chats: int = Field(default=8000, gt=0)
    """Scenes with a conversation to instruct on, and a question with a right and a wrong answer; none of them is among
    the captioned ones."""
    held_out: int = Field(default=400, gt=0)
    """Scenes of held-out digits: captioned, talked about, and asked about once for every kind of question."""


@dataclass(frozen=True, slots=True)
class DemoData:
    """Where everything is."""

    folder: Path

    @property
    def pairs(self) -> Path:
        """Folder of img2dataset shards (JPEG)."""
        return self.folder / "pairs"

    @property
    def pairs_held_out(self) -> Path:
        return self.folder / "pairs_held_out"

    @property
    def chats(self) -> Path:
        """LLaVA JSON; its images are members of `chat_images`."""
        return self.folder / "chats.json"

    @property
    def preferences(self) -> Path:
        """Preference pairs, one for each image in `chat_images`."""
        return self.folder / "preferences.json"

    @property
    def chat_images(self) -> Path:
        """A tar of PNG files."""
        return self.folder / "chat_images.tar"

    @property
    def chats_held_out(self) -> Path:
        """LLaVA JSON; its images are files below `images_held_out`."""
        return self.folder / "chats_held_out.json"

    @property
    def preferences_held_out(self) -> Path:
        """Preference pairs; images as in `chats_held_out`."""
        return self.folder / "preferences_held_out.json"

    @property
    def images_held_out(self) -> Path:
        return self.folder / "images_held_out"

    @property
    def questions(self) -> Path:
        """LLaVA JSON with one question a record, and the question's `kind`; images as in `chats_held_out`."""
        return self.folder / "questions.json"

    @property
    def description(self) -> Path:
        """The config that the data was made by."""
        return self.folder / "dataset.json"

    def is_complete(self, config: DatasetConfig) -> bool:
        """Whether all data of this config is there."""
        if not self.description.is_file():
            return False
        return self.description.read_text(encoding="utf-8") == config.model_dump_json(indent=2) + "\n"


def write_dataset(folder: Path, config: DatasetConfig) -> DemoData:
    """Writes all data below `folder`, unless it is there already; the same config gives the same bytes.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    data = DemoData(folder)
    if data.is_complete(config):
        return data
    folder.mkdir(parents=True, exist_ok=True)
    # A process each: composing and compressing thousands of small images holds one core.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for written in [pool.submit(write, data, config) for write in (_write_pairs, _write_chats, _write_held_out)]:
            written.result()
    # The last thing to be written, so that data cut short is never taken for whole.
    data.description.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return data


def scenes(config: DatasetConfig, split: Split, purpose: str, count: int) -> Iterator[Scene]:
    """The scenes of one purpose, each with its own generator, so that a scene does not depend on how many there are."""
    images = load_digit_images(split, config.scenes)
    for number in range(count):
        random = generator(config, purpose, number)
        yield compose(images, config.scenes, random, augment=split == "train")


def generator(config: DatasetConfig, purpose: str, number: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, *purpose.encode(), number])


def _captioned(config: DatasetConfig, shown: Iterable[Scene]) -> Iterator[ImageText]:
    for number, scene in enumerate(shown):
        height, width, _ = scene.pixels.shape
        said = caption(scene, generator(config, "captions", number))
        jpeg = _encoded(scene, "JPEG", quality=95, subsampling=0)
        yield ImageText(jpeg, said, "jpg", {"width": width, "height": height})


def _write_pairs(data: DemoData, config: DatasetConfig) -> None:
    shown = scenes(config, "train", "pairs", config.pairs)
    write_shards(_captioned(config, shown), data.pairs, PAIRS_PER_SHARD)


def _write_chats(data: DemoData, config: DatasetConfig) -> None:
    chats, preferences = [], []
    shown = scenes(config, "train", "chats", config.chats)
    with tarfile.open(data.chat_images, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, scene in enumerate(shown):
            name = f"{number:06d}"
            member = tarfile.TarInfo(f"{name}.png")
            png = _encoded(scene, "PNG", compress_level=1)
            member.size = len(png)
            tar.addfile(member, io.BytesIO(png))
            chats.append(_record(name, member.name, conversation(scene, generator(config, "turns", number))))
            preferences.append(_preference(name, member.name, scene, generator(config, "preferences", number)))
    _write_json(data.chats, chats)
    _write_json(data.preferences, preferences)


def _write_held_out(data: DemoData, config: DatasetConfig) -> None:
    shown = list(scenes(config, "test", "held_out", config.held_out))
    write_shards(_captioned(config, shown), data.pairs_held_out, PAIRS_PER_SHARD)
    data.images_held_out.mkdir(exist_ok=True)
    chats, preferences, asked = [], [], []
    for number, scene in enumerate(shown):
        name = f"{number:06d}"
        image = f"{name}.png"
        (data.images_held_out / image).write_bytes(_encoded(scene, "PNG"))
        random = generator(config, "test_turns", number)
        chats.append(_record(name, image, conversation(scene, random)))
        preferences.append(_preference(name, image, scene, generator(config, "test_preferences", number)))
        for question in one_of_each_kind(scene, random):
            asked.append(_record(f"{name}-{question.kind}", image, (question,)) | {"kind": question.kind})
    _write_json(data.chats_held_out, chats)
    _write_json(data.preferences_held_out, preferences)
    _write_json(data.questions, asked)


def _record(name: str, image: str, turns: tuple[Question, ...]) -> dict[str, Any]:
    said = []
    for number, turn in enumerate(turns):
        said.append({"from": "human", "value": turn.text if number else f"<image>\n{turn.text}"})
        said.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "image": image, "conversations": said}


def _preference(name: str, image: str, scene: Scene, random: np.random.Generator) -> dict[str, Any]:
    asked, wrong = compared(scene, random)
    prompt = _record(name, image, (asked,))["conversations"][:1]
    return {"id": name, "image": image, "conversations": prompt, "chosen": asked.answer, "rejected": wrong}


def _write_json(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n", encoding="utf-8")


def _encoded(scene: Scene, image_format: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene.pixels).save(file, image_format, **options)
    return file.getvalue()
