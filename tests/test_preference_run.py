"""From JSON pairs and images to a model that prefers the better answers: instruct, score, preference, by run files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.tokenizer import load_tokenizer
from mllm_jax.assemble import make_ingredients
from mllm_jax.checkpoint.checkpointer import CheckpointConfig
from mllm_jax.checkpoint.reading import latest_stored_step
from mllm_jax.cli import main
from mllm_jax.config import load_run
from mllm_jax.interop.model_folder import load_model
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.metrics import LoggingConfig
from mllm_jax.training.plan import Run, plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from tests.support.small_tokenizers import CHAT_TOKENS, sentencepiece_model

STEPS = 6

RUN_FILE = """
output: {folder}/run
model:
  encoder:
    preset: tiny_vit
    architecture: {{image_size: [8, 8], patch_size: 4, width: 16, layers: 1, heads: 2, feed_forward_width: 16}}
  connector: {{kind: mlp}}
  decoder:
    preset: tiny_llama
    architecture: {{width: 16, layers: 1, heads: 2, kv_heads: 1, head_width: 8, feed_forward_width: 16}}
  tokenizer: {folder}/tokenizer
  chat_template: chatml
  image_transform: {{mode: squash}}
  precision: {{compute: float32, frozen: float32}}
data:
  lanes: 2
  shuffle_window: 4
  open_rows: 2
  skip_quota: 0.2
  sources:
    pairs: {{kind: preference_json, files: {folder}/pairs.jsonl, images: {folder}/images}}
    held_out: {{kind: preference_json, files: {folder}/held_out.jsonl, images: {folder}/images}}
stages:
  - {{name: instruct, mixture: {{pairs: 1}}, rows: 2, row_length: 160, images_per_row: 4, steps: 2,
      trainable: ["connector/**", "decoder/**"], schedule: {{peak: 1e-2, warmup: 0}}}}
  - name: prefer
    mixture: {{pairs: 1}}
    validation: {{mixture: {{held_out: 1}}, batches: 2, every: 2}}
    rows: 4
    row_length: 160
    images_per_row: 4
    steps: {steps}
    trainable: ["connector/**"]
    adapters: {{decoder: {{targets: ["decoder/**/attention/*", "decoder/**/feed_forward/*"], rank: 4, dropout: 0.1}}}}
    objective: {{kind: preference, variant: {{kind: dpo, beta: 0.5}}, chunk_tokens: 32}}
    schedule: {{peak: 1e-2, warmup: 0}}
"""


def write_pairs(path: Path, numbers: range) -> None:
    """Every tenth pair has no rejected answer."""
    lines = []
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path.parent / "images" / f"{number}.png")
        asked = [{"from": "human", "value": f"<image>\nwhich of {number}?"}]
        worse = None if number % 10 == 9 else "red " * (1 + number % 2)
        lines.append({"image": f"{number}.png", "conversations": asked, "chosen": "blue wins", "rejected": worse})
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("bpe"))
    tokenizer = load_tokenizer(folder / "tokenizer.model", CHAT_TOKENS)
    for name in ("tokenizer", "images"):
        (folder / name).mkdir()
    for name, content in tokenizer.files().items():
        (folder / "tokenizer" / name).write_bytes(content)
    write_pairs(folder / "pairs.jsonl", range(40))
    write_pairs(folder / "held_out.jsonl", range(100, 120))
    (folder / "run.yaml").write_text(RUN_FILE.format(folder=folder, steps=STEPS))
    return folder


def run_of(folder: Path, output: Path, changes=(), stop_after: int | None = None) -> Run:
    """A run, whose second stage may lose its disk after so many batches."""
    config = load_run(folder / "run.yaml", [f"output={output}", *changes])
    ingredients = make_ingredients(config)

    def open_feed(request):
        feed = ingredients.open_feed(request)
        stops = stop_after is not None and request.split == "train" and request.stage.name == "prefer"
        return Stopping(feed, stop_after) if stops else feed

    return Run(
        folder=output,
        ingredients=replace(ingredients, open_feed=open_feed),
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        checkpoint=CheckpointConfig(every=2),
        logging=LoggingConfig(every=1, tensorboard=False),
        console=None,
    ), config.stages


class Stopping:
    def __init__(self, feed, left: int):
        self._feed, self._left = feed, left

    def __next__(self):
        if not self._left:
            raise OSError("the disk is gone")
        self._left -= 1
        return next(self._feed)

    def __getattr__(self, name):
        return getattr(self._feed, name)


def lines_of(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "prefer"]


def steady(line: dict) -> dict:
    """What does not depend on the clock."""
    return {name: value for name, value in line.items() if "second" not in name and "wait" not in name}


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    run, stages = run_of(folder, folder / "run")
    assert run_stages(stages, run) is Outcome.FINISHED
    return run.folder


def test_the_margin_rises_on_held_out_pairs(finished: Path) -> None:
    lines = lines_of(finished)
    steps = [line for line in lines if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    held_out = [line for line in lines if "validation_loss" in line]
    margins = [line["validation_reward_margin"] for line in held_out]
    assert len(margins) == STEPS // 2 and margins == sorted(margins) and margins[0] > 0.05
    assert held_out[-1]["validation_loss"] < np.log(2) and held_out[-1]["validation_reward_accuracy"] > 0.9
    skipped = sum(line["skipped_records"] for line in steps)
    assert skipped > 0 and skipped == sum(line.get("skipped_no_rejected", 0) for line in steps)


def test_what_is_left_is_a_model_with_what_was_frozen_as_it_was(folder: Path, finished: Path) -> None:
    run, stages = run_of(folder, finished)
    instruct, prefer = plan_stages(stages, run)
    assert {path.split("/")[0] for path in prefer.objective.own.shapes} == {"reference"}
    assert set(prefer.abstract.frozen) >= {"encoder", "decoder", "objective"}
    assert not any("objective" in str(path) for path, _ in jax.tree.leaves_with_path(prefer.abstract.optimizer_state))
    begun = first_parameters(prefer, [instruct], run)
    after = load_model(finished).parameters
    assert set(after) == {"encoder", "connector", "decoder"}
    jax.tree.map(np.testing.assert_array_equal, after["encoder"], begun["encoder"])
    embedding = lambda tree: jax.tree.leaves(tree["decoder"]["embedding"])[0]  # noqa: E731
    np.testing.assert_array_equal(embedding(after), embedding(begun))


def test_a_crashed_run_goes_on_bit_identically(folder: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "stages" / "0_instruct", tmp_path / "run" / "stages" / "0_instruct")
    run, stages = run_of(folder, tmp_path / "run", stop_after=3)
    with pytest.raises(OSError, match="the disk is gone"):
        run_stages(stages, run)
    run, stages = run_of(folder, tmp_path / "run")
    assert run_stages(stages, run) is Outcome.FINISHED
    assert latest_stored_step(run.folder).step == STEPS
    assert [steady(line) for line in lines_of(run.folder)] == [steady(line) for line in lines_of(finished)]
    jax.tree.map(np.testing.assert_array_equal, load_model(run.folder).parameters, load_model(finished).parameters)


def test_a_cached_reference_trains_as_a_live_one(folder: Path, finished: Path, tmp_path: Path, capsys) -> None:
    model = finished / "stages" / "0_instruct" / "checkpoints" / "2"
    for name in ("pairs", "held_out"):
        files = ["--data", f"{folder}/{name}.jsonl", "--output", f"{tmp_path}/{name}.jsonl"]
        assert main(["score", str(model), *files, "--rows", "4"]) == 0
    told = capsys.readouterr().out
    assert "skipped 4: no_rejected" in told and "36 pairs with the scores of" in told
    first = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert first["reference_template"] == "chatml" and "stage instruct, step 2" in first["reference_model"]
    shutil.copytree(finished / "stages" / "0_instruct", tmp_path / "run" / "stages" / "0_instruct")
    scored = [f"data.sources.{name}.files={tmp_path}/{name}.jsonl" for name in ("pairs", "held_out")]
    cached = "stages.prefer.objective.variant.reference=cached"
    run, stages = run_of(folder, tmp_path / "run", [cached, *scored])
    assert not plan_stages(stages, run)[1].objective.own.shapes
    assert run_stages(stages[:2], run) is Outcome.FINISHED
    # Bad pairs are gone from the scored files, so that the order is another: what agrees is where training begins.
    lines = lines_of(run.folder)
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert lines[-1]["validation_reward_margin"] > 0.05
    unscored, stages = run_of(folder, tmp_path / "again", [cached])
    shutil.copytree(finished / "stages" / "0_instruct", tmp_path / "again" / "stages" / "0_instruct")
    with pytest.raises(ValueError, match=r"pairs.jsonl:\d+ has no reference_chosen.*mllm score"):
        run_stages(stages, unscored)
    other = ["stages.prefer.template=llama3", cached, *scored]
    run, stages = run_of(folder, tmp_path / "again", other)
    with pytest.raises(ValueError, match=r"was scored by a reference model that read \[\d+, \d+\] tokens"):
        run_stages(stages, run)
