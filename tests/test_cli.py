"""Every verb that takes a model, as a user calls it."""

import io
import json
from pathlib import Path

import pytest

from data_pipelines.shards import ImageText, write_shards
from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.cli import main
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import load_model
from tests.support.hugging_face_folders import write_decoder, write_image, write_llava

SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    write_llava(folder / "theirs")
    export(load_model(folder / "theirs", chat_template=VICUNA_V1), folder / "exported")
    return str(folder / "exported")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_image(tmp_path_factory.mktemp("image") / "image.png"))


def test_generate_prints_the_answer_or_its_json(model: str, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", "--model", model, "--image", image, "--prompt", "What is it?", *SHORT]
    assert main(asked) == 0
    answer = capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["answer"] == answer.removesuffix("\n") and facts["images"] == [image] and 0 < len(facts["tokens"]) <= 4


def test_generate_answers_a_file_and_fails_when_a_line_does(
    model: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"prompt": "What is it?", "image": image}, {"prompt": "Look", "image": "not there.png"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    target = tmp_path / "out.jsonl"
    options = ["--input", str(tmp_path / "in.jsonl"), "--output", str(target)]
    assert main(["generate", "--model", model, *options, *SHORT]) == 1
    first, second = map(json.loads, target.read_text().splitlines())
    assert "answer" in first and "not there.png" in second["error"]
    assert "1 answered, 1 failed" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--prompt", "a", "--input", "b", "--output", "c"], ["--input", "b"]])
def test_generate_wants_either_a_prompt_or_files(
    options: list[str], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model", model, *options]) == 1
    assert "either --prompt" in capsys.readouterr().err


def test_a_file_that_is_no_image_is_one_clear_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert main(["generate", "--model", model, "--image", str(tmp_path / "text.png"), "--prompt", "a"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mllm: {tmp_path / 'text.png'}: ") and error.count("\n") == 1


def test_chat_talks_about_images_and_says_what_it_does_not_know(
    model: str, image: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"What is it?\n/image not there.png\n/image {image}\nAnd now?\n/new\n/dance\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main(["chat", "--model", model, "--image", image, *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "not there.png" in shown and "there is no command /dance" in shown


def test_eval_prints_a_table_and_leaves_scores_and_answers(
    model: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards([ImageText(Path(image).read_bytes(), "a caption", "png", {})] * 3, tmp_path / "shards", 10)
    shards = str(tmp_path / "shards" / "*.tar")
    options = ["--data", shards, "--limit", "2", "--rows", "2", "--output", str(tmp_path / "scores"), *SHORT]
    assert main(["eval", model, *options]) == 0
    assert "caption" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert len((tmp_path / "scores" / "answers.jsonl").read_text().splitlines()) == 2


def test_an_imported_decoder_is_a_model_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_decoder(tmp_path / "theirs")
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 1
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "back"), "--dtype", "bfloat16"]) == 0
    assert (tmp_path / "back" / "config.json").is_file()


def test_a_trained_tokenizer_says_what_had_no_text(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = {"id": "a", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}]}
    (tmp_path / "talk.jsonl").write_text(f"{json.dumps(talk)}\n[]\n")
    (tmp_path / "lines.txt").write_text("one line\nanother line\n")
    write_shards([ImageText(Path(image).read_bytes(), "a caption", "png", {})], tmp_path / "shards", 10)
    inputs = [str(tmp_path / name) for name in ("talk.jsonl", "lines.txt", "shards")]
    target = tmp_path / "tokenizer.model"
    assert main(["tokenizer", "train", *inputs, "--output", str(target), "--vocabulary", "290"]) == 0
    assert "1 records without text: bad_record" in capsys.readouterr().out
    assert target.stat().st_size > 1000


def test_score_writes_pairs_with_what_the_model_thinks_or_says_why_not(
    model: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"image": Path(image).name, "prompt": "What is it?", "chosen": "A cat.", "rejected": "A red dog."}
    (tmp_path / "pairs.json").write_text(json.dumps([pair, pair | {"rejected": "A cat."}]))
    (tmp_path / "bad.json").write_text(json.dumps([pair | {"chosen": None}]))
    asked = ["score", model, "--images", str(Path(image).parent), "--output", str(tmp_path / "scored.jsonl")]
    assert main([*asked, "--data", str(tmp_path / "bad.json")]) == 1
    assert "holds no pair that can be scored: no_chosen 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("scored*"))
    assert main([*asked, "--data", str(tmp_path / "pairs.json")]) == 0
    assert "skipped 1: equal_answers" in capsys.readouterr().out
    (scored,) = map(json.loads, (tmp_path / "scored.jsonl").read_text().splitlines())
    assert scored["reference_chosen"] < 0 and scored["reference_template"] == "vicuna_v1"
    assert pair.items() <= scored.items() and scored["reference_tokens"][0] < scored["reference_tokens"][1]
