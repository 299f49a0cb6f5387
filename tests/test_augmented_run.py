"""A stage that changes its images at random: while it trains, and nowhere else."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data_pipelines.shards import ImageText, write_shards
from mllm_jax.assemble import make_ingredients
from mllm_jax.config import load_run
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.run_file import RunFileError
from mllm_jax.training.ingredients import FeedRequest
from tests.support.small_tokenizers import write_tokenizer_folder
from tests.test_instructed_run import png

RUN_FILE = """
output: {folder}/run
model:
  encoder: {{preset: tiny_vit}}
  connector: {{kind: mlp}}
  decoder: {{preset: tiny_llama}}
  tokenizer: {folder}/tokenizer
  chat_template: vicuna_v1
data:
  lanes: 2
  shuffle_window: 4
  sources: {{pairs: {{kind: webdataset, shards: "{folder}/shards/*.tar"}}}}
stages:
  - {{name: align, mixture: {{pairs: 1}}, rows: 2, row_length: 512, images_per_row: 1, steps: 3, trainable: ["**"],
      validation: {{mixture: {{pairs: 1}}}}}}
"""
CROPS = "stages.align.augmentation={crop: {scale: [0.2, 0.5]}, brightness: 0.3}"


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    write_tokenizer_folder(folder / "tokenizer")
    write_shards((ImageText(png(number), f"red {number}", "png") for number in range(20)), folder / "shards")
    (folder / "run.yaml").write_text(RUN_FILE.format(folder=folder))
    return folder / "run.yaml"


def first_batch(run_file: Path, split: str, *overrides: str):
    config = load_run(run_file, overrides)
    sharding = NamedSharding(make_mesh(MeshConfig(), jax.devices()[:1]), PartitionSpec())
    feed = make_ingredients(config).open_feed(FeedRequest(config.stages[0], split, sharding, None))
    try:
        return jax.tree.map(np.asarray, next(feed).batch)
    finally:
        feed.close()


def test_images_change_in_training_and_stay_in_validation(run_file: Path) -> None:
    plain, changed = first_batch(run_file, "train"), first_batch(run_file, "train", CROPS)
    assert np.array_equal(plain.tokens, changed.tokens) and plain.images.any()
    assert not np.array_equal(plain.images, changed.images)
    assert np.array_equal(changed.images, first_batch(run_file, "train", CROPS).images)
    validated = first_batch(run_file, "validation"), first_batch(run_file, "validation", CROPS)
    assert np.array_equal(validated[0].images, validated[1].images)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.tiling={grids: [[1, 2]]}", r"stages\[0\].augmentation: an image's tiles are laid out by its size"),
        (
            "stages.align.objective={kind: preference, variant: {kind: dpo, reference: cached}}",
            "objective.variant.reference cached scores unchanged ones",
        ),
        ("stages.align.augmentation.flipp=0.5", "unknown key. Did you mean 'flip'"),
    ],
)
def test_what_cannot_be_changed_at_random_is_refused(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        load_run(run_file, [CROPS, override])


def test_a_run_file_with_an_augmentation_is_written_out_whole(run_file: Path) -> None:
    stage = load_run(run_file, [CROPS]).stages[0]
    written = json.loads(stage.model_dump_json())["augmentation"]
    assert written["crop"] == {"scale": [0.2, 0.5], "ratio": [0.75, 4 / 3]} and written["flip"] == 0.0
