"""The demo's files are what the data pipeline reads."""

import json
from functools import partial
from pathlib import Path

import pytest

from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart, Record
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage
from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.verification import verify_shard
from mllm_jax.demo.dataset import DatasetConfig, DemoData, scenes, write_dataset
from mllm_jax.demo.questions import questions

CONFIG = DatasetConfig(pairs=12, chats=10, held_out=6)
DECODE = partial(decode_image, config=ImageTransformConfig(size=(64, 64)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DemoData:
    return write_dataset(tmp_path_factory.mktemp("demo"), CONFIG)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_config_writes_the_same_bytes(data, tmp_path):
    assert files(write_dataset(tmp_path / "again", CONFIG).folder) == files(data.folder)


@pytest.mark.parametrize(
    ("folder", "count"),
    [("pairs", CONFIG.pairs), ("pairs_held_out", CONFIG.held_out)],
)
def test_shards_verify(data, folder, count):
    report = verify_shard(data.folder / folder / "00000.tar")
    assert report.whole and report.records == report.stated == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (lambda data: LlavaJsonConfig(files=str(data.chats), image_shards=str(data.chat_images)), CONFIG.chats),
        (
            lambda data: LlavaJsonConfig(files=str(data.chats_held_out), images=str(data.images_held_out)),
            CONFIG.held_out,
        ),
    ],
)
def test_conversations_are_read_with_their_images(data, source, count):
    storage = Storage()
    found = list(records(source(data).open(storage)))
    assert len(found) == count
    for record in found:
        assert isinstance(record, Record) and not isinstance(record, Skip)
        image = record.turns[0].parts[0]
        assert isinstance(image, ImagePart)
        assert DECODE(storage.read_range(image.source)).shape == (64, 64, 3)
        assert sum(isinstance(part, ImagePart) for turn in record.turns for part in turn.parts) == 1


@pytest.mark.parametrize("held_out", [False, True])
def test_one_of_two_answers_is_what_is_seen(data, held_out):
    if held_out:
        source = PreferenceJsonConfig(files=str(data.preferences_held_out), images=str(data.images_held_out))
        shown = list(scenes(CONFIG, "test", "held_out", CONFIG.held_out))
    else:
        source = PreferenceJsonConfig(files=str(data.preferences), image_shards=str(data.chat_images))
        shown = list(scenes(CONFIG, "train", "chats", CONFIG.chats))
    pairs = list(records(source.open(Storage())))
    assert len(pairs) == len(shown) and all(isinstance(pair, Record) for pair in pairs)
    for pair, scene in zip(pairs, shown, strict=True):
        asked, right, wrong = (turn.parts[-1].text.strip() for turn in (*pair.turns, pair.rejected))
        answers = {question.text: question.answer for question in questions(scene)}
        assert answers[asked] == right != wrong and len(wrong.split()) == 1


def test_every_test_question_has_a_kind_and_one_turn(data):
    asked = json.loads(data.questions.read_text())
    assert {question["kind"] for question in asked} == {"digit", "digits", "colour", "count", "relation", "box"}
    assert all(len(question["conversations"]) == 2 for question in asked)
    assert all((data.images_held_out / question["image"]).is_file() for question in asked)
