"""From tars of captioned images to BLIP-2 in both of its stages: every room, from a run file to transformers."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers
from flax.traverse_util import flatten_dict

from data_pipelines.tokenizer import load_tokenizer
from mllm_jax.assemble import make_ingredients
from mllm_jax.checkpoint.reading import last_stored_step, read_parameters
from mllm_jax.config import RunConfig, load_run
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import load_model
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import batch_sharding
from mllm_jax.run_file import RunFileError
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.plan import Run, plan_stages
from mllm_jax.training.run import Outcome, run_stages
from tests.support.captioned_colours import CAUSES, SAMPLES, colour_of, write_captioned_colours
from tests.support.parity import assert_same_logits
from tests.support.run_files import CutShortError, cut_short, run_of
from tests.support.small_tokenizers import word_pieces, write_bert

ROWS = 16
STEPS = 160
RUN_FILE = """
extends: base.yaml
model:
  encoder: {{preset: eva_vit_g14}}
  connector:
    {{kind: q_former, queries: 2, width: 32, layers: 2, heads: 2, feed_forward_width: 32, stack: {{scan: false}}}}
stages:
  - name: represent
    mixture: {{pairs: 1}}
    validation: {{mixture: {{held_out: 1}}, batches: 4, every: 80}}
    objective:
      kind: q_former
      text: {{tokenizer: {folder}/bert, vocab_size: {words}, max_positions: 8}}
      text_tokens: 6
      width: 16
    rows: 16
    row_length: 6
    images_per_row: 1
    steps: 160
    trainable: ["connector/**"]
    optimizer: {{kind: adamw, weight_decay: 0.05}}
    schedule: {{peak: 1e-2, warmup: 0.1}}
  - {{name: generate, mixture: {{pairs: 1}}, rows: 8, row_length: 48, images_per_row: 3, steps: 4,
      trainable: ["connector/**"], schedule: {{peak: 1e-2, warmup: 0}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_captioned_colours(folder)
    write_bert(folder / "bert")
    (folder / "run.yaml").write_text(RUN_FILE.format(folder=folder, words=len(word_pieces()) + 1))
    return folder


SAVE_EVERY = 60


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[RunConfig, Run]:
    config = load_run(folder / "run.yaml")
    run = run_of(config, save_every=SAVE_EVERY)
    assert run_stages(config.stages, run) is Outcome.FINISHED
    return config, run


def lines_of(run: Run, stage: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def test_all_losses_fall_and_held_out_pairs_are_found(finished: tuple[RunConfig, Run]) -> None:
    steps = [line for line in lines_of(finished[1], "represent") if "loss" in line]
    assert len(steps) == STEPS
    for name in ("loss", "contrastive_loss", "captioning_loss"):
        first, last = (np.mean([line[name] for line in part]) for part in (steps[:5], steps[-10:]))
        assert last < 0.6 * first, name
    # Less than by knowing only that one of three belongs together, and negatives grow harder all the time.
    assert np.mean([line["matching_loss"] for line in steps[-10:]]) < 0.9 * (np.log(3) - np.log(4) / 3)
    assert {"temperature", "matching_accuracy", "gradient_norm"} <= steps[-1].keys()
    assert "model_flops_per_second" not in steps[-1]
    validations = [line for line in lines_of(finished[1], "represent") if "validation_loss" in line]
    for direction in ("image_to_text", "text_to_image"):
        assert validations[-1][f"validation_{direction}_recall"] > 0.7, direction  # By chance: 1 / 16.
    assert validations[-1]["validation_loss"] < validations[0]["validation_loss"]
    skipped = [sum(line.get(f"skipped_{cause}", 0) for line in steps) for cause in CAUSES]
    assert min(skipped) >= STEPS * ROWS // SAMPLES, skipped
    generate = [line["loss"] for line in lines_of(finished[1], "generate") if "loss" in line]
    assert generate[-1] < generate[0]


def test_what_a_stage_leaves_is_a_blip2(finished: tuple[RunConfig, Run], tmp_path: Path) -> None:
    """What was trained goes on into the second stage, the rest of the first one is gone, the encoder is as it was."""
    config, run = finished
    model = load_model(run.folder)
    planned = plan_stages(config.stages, run)
    assert not any(path.startswith("objective") for path in flatten_dict(model.parameters, sep="/"))
    whole = {**planned[1].abstract.frozen, **planned[1].abstract.trainable}
    first = run.ingredients.initial_parameters(whole)
    jax.tree.map(np.testing.assert_array_equal, model.parameters["encoder"], first["encoder"])
    export(model, tmp_path / "exported")
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "exported").eval()
    again = load_model(tmp_path / "exported")
    assert_same_logits(again.config, again.parameters, theirs, theirs.config.image_token_index)


def test_a_run_that_was_cut_off_ends_as_an_undisturbed_one(finished: tuple[RunConfig, Run], folder: Path) -> None:
    config = load_run(folder / "run.yaml", [f"output={folder}/cut"])
    stages = config.stages[:1]
    cut = cut_short(make_ingredients(config), "represent", 100)
    with pytest.raises(CutShortError):
        run_stages(stages, run_of(config, cut, SAVE_EVERY))
    run = run_of(config, save_every=SAVE_EVERY)
    assert run_stages(stages, run) is Outcome.FINISHED
    kept = []
    for each in (finished[1], run):
        (planned,) = plan_stages(stages, each)
        wanted = jax.tree.map(lambda leaf: leaf.update(dtype="float32"), planned.abstract_parameters())
        kept.append(jax.device_get(read_parameters(last_stored_step(planned.folder), wanted)))
    jax.tree.map(np.testing.assert_array_equal, *kept)
    assert "temperature" in kept[0]["objective"]
    named = [
        [(line["step"], line["loss"]) for line in lines_of(each, "represent") if "loss" in line]
        for each in (finished[1], run)
    ]
    assert named[0] == named[1]


def test_the_batches_of_a_connector_with_text(folder: Path) -> None:
    """A stage of pairs has the captions in the connector's tokens, a later one instructions."""
    text = f"{{vocab_size: {len(word_pieces()) + 1}, max_positions: 9, instruction_tokens: 7}}"
    config = load_run(
        folder / "run.yaml",
        [
            f"model.connector.text={text}",
            f"model.instruction_tokenizer={folder}/bert",
            "stages.represent.objective.text=null",
            "stages.represent.images_per_row=2",
            "stages.represent.row_length=12",
        ],
    )
    ingredients = make_ingredients(config)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tokenizer = load_tokenizer(folder / "bert", added_tokens=())
    for stage in config.stages:
        feed = ingredients.open_feed(FeedRequest(stage, "train", batch_sharding(mesh), None))
        loaded = next(feed)
        feed.close()
        batch = jax.device_get(loaded.batch)
        if stage.name == "generate":
            assert batch.instructions.shape == (8, 3, 7)
            continue
        assert batch.instructions is None and batch.image_mask.all() and (batch.image_index < 0).all()
        read = tokenizer.decode(batch.tokens[0][batch.segment_ids[0] == 2], skip_special_tokens=False)
        left, right = read.removeprefix("[CLS] ").removesuffix(" [SEP]").split()
        assert (left, right) == (colour_of(batch.images[0, 1, :, :4]), colour_of(batch.images[0, 1, :, 4:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["stages.represent.accumulate=2"], "accumulate: found 2, expected 1"),
        (["stages.represent.row_length=5"], "row_length: found 5, expected at least 6"),
        (["stages.represent.objective.text.tokenizer={folder}/nothing"], "objective.text.tokenizer: .*nothing"),
        (["stages.represent.objective.kind=q_foamer"], "expected one of .*q_former.* Did you mean 'q_former'"),
        (
            ["stages.represent.objective.smoothing=1"],
            "objective.smoothing: unknown key.* Did you mean 'label_smoothing'",
        ),
    ],
)
def test_run_files_that_cannot_train_on_pairs_are_refused(folder: Path, changes: list[str], message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        load_run(folder / "run.yaml", [change.format(folder=folder) for change in changes])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["text.tokenizer={folder}/tokenizer"], "represent.* the tokenizer has no tokens that stand before and after"),
        (["text.vocab_size=20"], r"objective.text.tokenizer: it has \d+ tokens, but the word embedding only 20 rows"),
        (["text.vocab_size=400", "begin_token=7"], "of which one has row 7 of the 400 rows"),
        (["text=null"], "objective.text: .* but neither has one; give exactly one"),
    ],
)
def test_tokenizers_that_do_not_fit_the_text_side_are_refused(folder: Path, changes: list[str], message: str) -> None:
    overrides = [f"stages.represent.objective.{change.format(folder=folder)}" for change in changes]
    with pytest.raises(ValueError, match=message):
        make_ingredients(load_run(folder / "run.yaml", overrides))
