"""From tars of captioned images to an InstructBLIP that can be asked and is exported: every room, three steps."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.record import Record, TextPart, Turn
from data_pipelines.shards import ImageText, write_shards
from mllm_jax.assemble import make_ingredients
from mllm_jax.config import load_run
from mllm_jax.generation.answering import Answerer
from mllm_jax.generation.batch import answer_prompt
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.equivalents import without_padding
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.run_file import RunFileError
from tests.support.run_files import TINY_RUN, finished
from tests.support.small_tokenizers import word_pieces, write_bert, write_tokenizer_folder

RUN_FILE = """
extends: {base}
output: {folder}/run
model:
  encoder: {{preset: eva_vit_g14}}
  connector:
    kind: q_former
    queries: 3
    width: 8
    layers: 2
    heads: 2
    feed_forward_width: 12
    text: {{vocab_size: {words}, max_positions: 16, instruction_tokens: 7}}
  tokenizer: {folder}/tokenizer
  instruction_tokenizer: {folder}/bert
  chat_template: vicuna_v1
data:
  lanes: 2
  shuffle_window: 4
  sources:
    pairs: {{kind: webdataset, shards: "{folder}/shards/*.tar", prompts: ["how many digits?", "what is there?"]}}
stages:
  - {{name: align, template: plain, mixture: {{pairs: 1}}, rows: 2, row_length: 64, images_per_row: 3, steps: 3,
      trainable: ["connector/**"], schedule: {{peak: 1e-2, warmup: 0}}}}
"""


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instructed")
    write_tokenizer_folder(folder / "tokenizer")
    write_bert(folder / "bert")
    write_shards((ImageText(png(number), f"red {number}", "png") for number in range(20)), folder / "shards")
    (folder / "run.yaml").write_text(RUN_FILE.format(base=TINY_RUN, folder=folder, words=len(word_pieces()) + 1))
    return folder


def trained(folder: Path) -> LoadedModel:
    config = load_run(folder / "run.yaml")
    return finished(config)


def test_it_trains_reads_questions_and_is_exported(folder: Path, tmp_path: Path) -> None:
    model = trained(folder)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3 and losses[-1] < losses[0]
    (tmp_path / "image.png").write_bytes(png(3))
    asked = Record("asked", (Turn("user", (image_part(tmp_path / "image.png"), TextPart("how many?")), learn=False),))
    prompt = Answerer(model, DecodingConfig()).prompt(asked)
    assert model.instruction_tokenizer.decode(prompt.instructions[0]) == "how many?"
    answer = answer_prompt(Answerer(model, DecodingConfig(max_new_tokens=3)), "red?", [tmp_path / "image.png"])
    assert 0 < len(answer.tokens) <= 3 or answer.finished
    export(model, tmp_path / "exported")
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert written["architectures"] == ["InstructBlipForConditionalGeneration"]
    again = load_model(tmp_path / "exported")
    expected = without_padding(model)
    assert again.config == expected.config
    assert again.instruction_tokenizer.files() == model.instruction_tokenizer.files()
    assert jax.tree.all(jax.tree.map(np.array_equal, again.parameters, expected.parameters))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.instruction_tokenizer=null", "model.connector reads instructions; give both"),
        ("model.connector={kind: mlp}", "model.connector reads no instructions; give both"),
    ],
)
def test_a_connector_and_its_tokenizer_go_together(folder: Path, change: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        load_run(folder / "run.yaml", [change])


def test_a_tokenizer_of_more_tokens_than_the_connector_has_is_refused(folder: Path) -> None:
    config = load_run(folder / "run.yaml", ["model.connector.text.vocab_size=20"])
    with pytest.raises(ValueError, match=r"has \d+ tokens, but the connector's text.vocab_size is 20"):
        make_ingredients(config)
