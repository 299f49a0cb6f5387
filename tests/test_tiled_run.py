"""From tars of images of odd sizes to a model with tiles that answers and is exported: every room, two steps."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.shards import ImageText, write_shards
from data_pipelines.tokenizer import tokenizer_from_files
from mllm_jax.assemble import make_ingredients
from mllm_jax.config import RunConfig, load_run
from mllm_jax.generation.answering import Answerer
from mllm_jax.generation.batch import answer_prompt
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.interop.equivalents import without_padding
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.models.parameters import init_parameters
from mllm_jax.training.ingredients import FeedRequest
from tests.support.run_files import TINY_RUN, finished
from tests.support.small_tokenizers import write_tokenizer_folder

RUN_FILE = """
extends: {base}
output: {folder}/run
model:
  encoder: {{architecture: {{activation: gelu_tanh, pixel_mean: [0.5, 0.5, 0.5]}}}}
  connector: {{kind: mlp}}
  tokenizer: {folder}/tokenizer
  chat_template: vicuna_v1
  tiling: {{grids: [[1, 2], [2, 1], [2, 2]]}}
data:
  lanes: 2
  shuffle_window: 4
  sources:
    pairs: {{kind: webdataset, shards: "{folder}/shards/*.tar"}}
stages:
  - {{name: align, template: plain, mixture: {{pairs: 1}}, rows: 2, row_length: 96, images_per_row: 6, steps: 2,
      trainable: ["**"], schedule: {{peak: 1e-2, warmup: 0}}}}
"""


def png(number: int) -> bytes:
    size = (5 + number * 7 % 30, 5 + number * 11 % 30)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def prepared_run(folder: Path, run_file: str = RUN_FILE) -> RunConfig:
    """A tokenizer, shards and the run file that names them."""
    write_tokenizer_folder(folder / "tokenizer")
    write_shards((ImageText(png(number), f"red {number}", "png") for number in range(20)), folder / "shards")
    (folder / "run.yaml").write_text(run_file.format(base=TINY_RUN, folder=folder))
    return load_run(folder / "run.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    config = prepared_run(tmp_path_factory.mktemp("tiled"))
    return finished(config)


def test_every_part_trains_and_the_newline_too(trained: LoadedModel) -> None:
    metrics = Path(trained.source.partition(" ")[0]) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [np.isfinite(line["loss"]) for line in lines if "loss" in line] == [True, True]
    begun = init_parameters(trained.config, jax.random.key(0))
    for part, tree in begun.items():
        changed = jax.tree.map(lambda first, last: not np.array_equal(first, last), tree, trained.parameters[part])
        assert any(jax.tree.leaves(changed)), part
    assert not np.array_equal(begun["connector"]["newline"], trained.parameters["connector"]["newline"])


def test_it_answers_and_is_exported(trained: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(3))
    answer = answer_prompt(Answerer(trained, DecodingConfig(max_new_tokens=3)), "red?", [tmp_path / "image.png"])
    assert len(answer.tokens) <= 3
    export(trained, tmp_path / "exported")
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert written["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert written["image_grid_pinpoints"] == [[8, 16], [16, 8], [16, 16]]
    again = load_model(tmp_path / "exported")
    assert again.config.tiling == trained.config.tiling
    assert jax.tree.all(jax.tree.map(np.array_equal, again.parameters, without_padding(trained).parameters))


def test_marks_between_tiles_are_added_to_the_tokenizer_and_stand_in_the_rows(tmp_path: Path) -> None:
    changes = {
        "{{kind: mlp}}": "{{kind: pixel_shuffle, depth: 1, bias: false}}",
        "{{grids: [[1, 2], [2, 1], [2, 2]]}}": "{{kind: splitting, longest_side: 2}}",
        "vicuna_v1": "smolvlm",
        "template: plain": "template: smolvlm",
    }
    run_file = RUN_FILE
    for old, new in changes.items():
        assert old in run_file
        run_file = run_file.replace(old, new)
    config = prepared_run(tmp_path, run_file)
    ingredients = make_ingredients(config)
    tokenizer = tokenizer_from_files(ingredients.tokenizer_files)
    with ingredients.open_feed(FeedRequest(config.stages[0], "train", None, None)) as feed:
        batch = next(feed).batch

    assert ingredients.model.decoder.vocab_size >= tokenizer.vocabulary_size
    assert (batch.tokens == tokenizer.image_id).sum() == batch.image_mask.sum() > 4, "one feature a tile"
    images = (batch.tokens == tokenizer.special_id("<global-img>")).sum()
    assert (batch.tokens == tokenizer.special_id("<row_1_col_1>")).sum() == images > 1
    assert (batch.tokens == tokenizer.special_id("<fake_token_around_image>")).sum() == batch.image_mask.sum() + images
