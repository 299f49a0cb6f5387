"""Asking a model: one prompt, a file of prompts, a conversation."""

import json
from pathlib import Path

import pytest

from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.generation.answering import Answerer, user_parts
from mllm_jax.generation.batch import FileCounts, answer_file, answer_prompt
from mllm_jax.generation.chat import ChatSession, image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.model_folder import load_model
from tests.support.hugging_face_folders import write_decoder, write_image, write_llava


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    folder = tmp_path_factory.mktemp("model")
    write_llava(folder)
    return Answerer(load_model(folder, chat_template=VICUNA_V1), DecodingConfig(max_new_tokens=5, rows=2))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("image") / "image.png")


def test_a_file_is_answered_line_by_line_and_bad_lines_say_why(answerer: Answerer, image: Path, tmp_path: Path) -> None:
    lines = [
        {"id": 1, "prompt": "What colour is it?", "image": str(image)},
        {"id": 2, "prompt": "Hello"},
        {"id": 3, "prompt": "Look", "image": "not there.png"},
        {"id": 4, "question": "no prompt"},
        {"id": 5, "prompt": "<image> or <image>?", "image": [str(image), str(image)]},
        {"id": 6, "prompt": "x" * 400},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\nno JSON\n")
    counts = answer_file(answerer, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert counts == FileCounts(answered=3, failed=4)
    assert [result.get("id") for result in results] == [1, 2, 3, 4, 5, 6, None]
    assert ["error" in result for result in results] == [False, False, True, True, False, True, True]
    assert results[0]["answer"] == answer_prompt(answerer, "What colour is it?", [image]).text
    assert "not there.png" in results[2]["error"]
    assert "in.jsonl:8" in results[6]["error"]


def test_a_chat_answers_with_what_was_said_in_view(answerer: Answerer, image: Path) -> None:
    chat = ChatSession(answerer)
    chat.show(image)
    first = "".join(chat.ask("What colour is it?"))
    assert first.strip() == answer_prompt(answerer, "What colour is it?", [image]).text
    list(chat.ask("And now?"))
    assert [turn.role for turn in chat.turns] == ["user", "assistant", "user", "assistant"]
    assert chat.turns[0].parts[0] == image_part(image)
    chat.forget()
    assert chat.turns == ()


def test_an_image_that_cannot_be_shown_is_not_kept(answerer: Answerer, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    chat = ChatSession(answerer)
    with pytest.raises(ImageError):
        chat.show(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"there is no image file .*nothing\.png"):
        chat.show(tmp_path / "nothing.png")
    list(chat.ask("Hello"))
    assert len(chat.turns[0].parts) == 1


def test_a_language_model_alone_is_shown_no_images(tmp_path: Path, image: Path) -> None:
    write_decoder(tmp_path)
    blind = Answerer(load_model(tmp_path, chat_template=VICUNA_V1), DecodingConfig(max_new_tokens=2))
    with pytest.raises(ValueError, match="is a language model"):
        answer_prompt(blind, "What is this?", [image])


def test_a_model_without_a_known_template_is_not_asked(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    with pytest.raises(ValueError, match="does not say which chat template"):
        Answerer(load_model(tmp_path), DecodingConfig())


def test_marks_and_images_must_be_as_many(image: Path) -> None:
    part = image_part(image)
    assert [type(each).__name__ for each in user_parts("a <image> b", [part])] == ["TextPart", "ImagePart", "TextPart"]
    with pytest.raises(ValueError, match="1 <image> marks for 2 images"):
        user_parts("<image>", [part, part])
