"""An evaluation asks every question, scores it, and writes down all that it takes to ask again."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from rich.console import Console

from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart, TextPart
from data_pipelines.shards import ImageText, write_shards
from data_pipelines.storage import Storage
from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from mllm_jax.evaluation.questions import Question, read_questions
from mllm_jax.evaluation.report import scores_json, scores_table, write_report
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import LoadedModel, load_model
from tests.support.hugging_face_folders import write_decoder, write_image, write_llava

CONFIG = EvaluationConfig(rows=4, max_new_tokens=4)


def said(role: str, text: str, **more: str) -> dict[str, str]:
    return {"from": role, "value": text, **more}


def conversations(references: dict[str, str]) -> list[dict]:
    first = [
        said("human", "<image>\nWhat colour is the digit?"),
        said("gpt", references.get("colour", "red"), kind="colour"),
        said("human", "Where is it?"),
        said("gpt", "[0.1,0.1,0.5,0.5]"),
    ]
    second = [said("human", "<image>\nHow many digits are there?"), said("gpt", "two")]
    return [
        {"id": "a", "image": "a.png", "conversations": first},
        {"id": "b", "image": "b.png", "kind": "count", "conversations": second},
        {"id": "c", "image": "not there.png", "conversations": second},
        {"id": "d", "image": "damaged.png", "conversations": second},
    ]


def write_data(folder: Path, references: dict[str, str]) -> str:
    (folder / "images").mkdir(parents=True)
    for seed, name in enumerate("ab"):
        write_image(folder / "images" / f"{name}.png", seed)
    (folder / "images" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (folder / "data.json").write_text(json.dumps(conversations(references)))
    return str(folder / "data.json")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_llava(folder / "theirs")
    export(load_model(folder / "theirs", chat_template=VICUNA_V1), folder / "exported")
    return folder / "exported"


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def evaluation(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Of data whose first reference is what the model answers."""
    folder = tmp_path_factory.mktemp("data")
    first = evaluate(loaded, write_data(folder / "first", {}), CONFIG)
    return evaluate(loaded, write_data(folder / "second", {"colour": first.asked[0].answer.text}), CONFIG)


def test_questions_are_asked_alone_with_the_images_shown_so_far(tmp_path: Path) -> None:
    path = write_data(tmp_path / "data", {})
    items = list(read_questions(path, Storage()))
    questions = [item for item in items if isinstance(item, Question)]
    assert [question.kind for question in questions] == ["colour", "box", "count", "answer"]
    assert [question.key for question in questions] == [f"{path}:0#1", f"{path}:0#3", f"{path}:1#1", f"{path}:3#1"]
    assert [item.cause for item in items if isinstance(item, Skip)] == ["missing_image"]
    second = questions[1].record.turns
    assert len(second) == 1
    assert isinstance(second[0].parts[0], ImagePart)
    assert second[0].parts[1] == TextPart("Where is it?")


def test_with_history_a_question_follows_the_right_answers_before_it(tmp_path: Path) -> None:
    questions = list(read_questions(write_data(tmp_path / "data", {}), Storage(), history=True, limit=2))
    assert [turn.role for turn in questions[1].record.turns] == ["user", "assistant", "user"]
    assert len(questions) == 2


def test_right_answers_count_and_bad_images_are_left_out(evaluation: Evaluation) -> None:
    scores = scores_json(evaluation)
    assert evaluation.skipped == {"missing_image": 1, "corrupt": 1}
    assert scores["questions"] == 3
    assert {kind: total["accuracy"] for kind, total in scores["scores"].items()} == {
        "all": 1 / 3,
        "box": 0.0,
        "colour": 1.0,
        "count": 0.0,
    }
    assert scores["blank_scores"]["colour"]["accuracy"] == 0.0
    assert scores["scores"]["box"]["overlap"] == 0.0


def test_the_loss_of_a_reference_is_that_of_transformers(evaluation: Evaluation, model_folder: Path) -> None:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(model_folder)
    asked = evaluation.asked[0]
    content = [{"type": "image"}, {"type": "text", "text": asked.question.text}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": asked.question.reference}]}
    turns = [{"role": "user", "content": content}, answer]
    image = Image.open(asked.question.images[0].source.path)
    prompt = processor(images=image, text=processor.apply_chat_template(turns[:1], add_generation_prompt=True))
    inputs = processor(images=image, text=processor.apply_chat_template(turns), return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, : len(prompt["input_ids"][0])] = -100
    with torch.no_grad():
        expected = model(**inputs, labels=labels).loss.item()
    assert asked.result.loss / asked.result.tokens == pytest.approx(expected, abs=1e-4)


def test_the_report_names_prompt_decoding_and_data(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["chat_template"]["name"] == "vicuna_v1"
    assert scores["decoding"] == {"method": "greedy", "max_new_tokens": 4}
    assert len(scores["data_sha256"]) == 64
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [asked.question.key for asked in evaluation.asked]
    assert lines[0]["correct"] is True
    assert lines[0]["blank"]["correct"] is False
    with (tmp_path / "table").open("w") as file:
        Console(width=160, file=file).print(scores_table(evaluation))
    text = (tmp_path / "table").read_text()
    assert "blank image" in text
    assert "100.0%" in text
    assert "missing_image 1" in text


def test_the_data_hash_does_not_depend_on_where_the_data_is(loaded: LoadedModel, tmp_path: Path) -> None:
    config = EvaluationConfig(rows=4, max_new_tokens=4, blank=False, loss=False)
    here, there, other = (
        evaluate(loaded, write_data(tmp_path / name, references), config).data_hash
        for name, references in (("here", {}), ("there", {}), ("other", {"colour": "blue"}))
    )
    assert here == there != other


def test_captions_of_shards_are_scored_too(loaded: LoadedModel, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png").read_bytes()
    write_shards([ImageText(image=image, caption="a red digit", extension="png")], tmp_path / "shards")
    evaluation = evaluate(loaded, str(tmp_path / "shards"), CONFIG)
    assert scores_json(evaluation)["scores"].keys() == {"caption", "all"}
    assert evaluation.asked[0].result.loss > 0


def test_a_question_is_asked_with_the_images_of_another_too(loaded: LoadedModel, tmp_path: Path) -> None:
    """Both questions about image a are shown image b, and the one about b is shown a."""
    path = write_data(tmp_path / "data", {})
    asked = evaluate(loaded, path, EvaluationConfig(rows=2, max_new_tokens=4, blank=False, shuffled=True)).asked
    (tmp_path / "exchanged").mkdir()
    (tmp_path / "exchanged" / "a.png").write_bytes((tmp_path / "data/images/b.png").read_bytes())
    (tmp_path / "exchanged" / "b.png").write_bytes((tmp_path / "data/images/a.png").read_bytes())
    exchanged = evaluate(loaded, path, EvaluationConfig(rows=2, max_new_tokens=4), str(tmp_path / "exchanged"))
    assert len(asked) == 3
    for each, other in zip(asked, exchanged.asked, strict=True):
        answer, result = each.baselines["shuffled"]
        assert (answer.text, each.to_json()["shuffled"]["loss"]) == (other.answer.text, other.to_json()["loss"])
        assert result.loss != each.result.loss


def test_the_table_of_all_baselines_fits_a_terminal(loaded: LoadedModel, tmp_path: Path) -> None:
    config = EvaluationConfig(rows=2, max_new_tokens=4, shuffled=True)
    evaluation = evaluate(loaded, write_data(tmp_path / "data", {}), config)
    with (tmp_path / "table").open("w") as file:
        Console(width=80, file=file).print(scores_table(evaluation))
    assert "…" not in (tmp_path / "table").read_text()


def test_a_language_model_without_eyes_is_not_asked_about_images(tmp_path: Path) -> None:
    write_decoder(tmp_path / "decoder")
    blind = load_model(tmp_path / "decoder", chat_template=VICUNA_V1)
    with pytest.raises(ValueError, match="is a language model without eyes"):
        evaluate(blind, write_data(tmp_path / "data", {}), CONFIG)


def test_a_single_image_has_no_other(loaded: LoadedModel, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png").read_bytes()
    write_shards([ImageText(image=image, caption="a red digit", extension="png")], tmp_path / "shards")
    evaluation = evaluate(loaded, str(tmp_path / "shards"), EvaluationConfig(rows=4, max_new_tokens=4, shuffled=True))
    assert scores_json(evaluation)["shuffled_scores"] is None
    with (tmp_path / "table").open("w") as file:
        Console(width=160, file=file).print(scores_table(evaluation))
    assert "other image" not in (tmp_path / "table").read_text()


def test_data_without_a_question_is_an_error(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no question that can be asked: not_an_object 2"):
        evaluate(loaded, str(tmp_path / "data.json"), CONFIG)
