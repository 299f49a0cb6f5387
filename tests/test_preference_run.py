"""From JSON pairs and images to a model that prefers the better answers: instruct, score, preference, by run files."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from mllm_jax.assemble import make_ingredients
from mllm_jax.checkpoint.reading import latest_stored_step
from mllm_jax.cli import main
from mllm_jax.config import load_run
from mllm_jax.interop.model_folder import load_model
from mllm_jax.parallel.rules import batch_sharding
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.plan import Run, plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from tests.support.run_files import TINY_RUN, CutShortError, cut_short, run_of
from tests.support.small_tokenizers import write_tokenizer_folder

STEPS = 6
CACHED = "stages.prefer.objective.variant.reference=cached"

RUN_FILE = """
extends: {base}
output: {folder}/run
model:
  tokenizer: {folder}/tokenizer
  chat_template: chatml
  precision: {{frozen: float32}}
data:
  lanes: 2
  shuffle_window: 4
  open_rows: 2
  skip_quota: 0.2
  sources:
    pairs: {{kind: preference_json, files: {folder}/pairs.jsonl, images: {folder}/images}}
    held_out: {{kind: preference_json, files: {folder}/held_out.jsonl, images: {folder}/images}}
    spoiled: {{kind: preference_json, files: {folder}/spoiled.jsonl, images: {folder}/images}}
stages:
  - {{name: instruct, mixture: {{pairs: 1, spoiled: 1}}, rows: 2, row_length: 160, images_per_row: 4, steps: 2,
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


def write_pairs(path: Path, numbers: range, spoiled: bool = False) -> None:
    """Of spoiled ones every third pair has no rejected answer."""
    lines = []
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path.parent / "images" / f"{number}.png")
        asked = [{"from": "human", "value": f"<image>\nwhich of {number}?"}]
        worse = None if spoiled and number % 3 == 2 else "red " * (1 + number % 2)
        lines.append({"image": f"{number}.png", "conversations": asked, "chosen": "blue wins", "rejected": worse})
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    write_tokenizer_folder(folder / "tokenizer")
    (folder / "images").mkdir()
    write_pairs(folder / "pairs.jsonl", range(40))
    write_pairs(folder / "held_out.jsonl", range(100, 120))
    write_pairs(folder / "spoiled.jsonl", range(200, 230), spoiled=True)
    (folder / "run.yaml").write_text(RUN_FILE.format(base=TINY_RUN, folder=folder, steps=STEPS))
    return folder


def prepared(folder: Path, output: Path, changes=(), stop_after: int | None = None) -> tuple[Run, tuple]:
    """A run and its stages, of which the second may be cut short after so many batches."""
    config = load_run(folder / "run.yaml", [f"output={output}", *changes])
    ingredients = make_ingredients(config)
    if stop_after is not None:
        ingredients = cut_short(ingredients, "prefer", stop_after)
    return run_of(config, ingredients, save_every=2), config.stages


def lines_of(output: Path, stage: str = "prefer") -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def steady(line: dict) -> dict:
    """What does not depend on the clock."""
    return {name: value for name, value in line.items() if "second" not in name and "wait" not in name}


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    run, stages = prepared(folder, folder / "run")
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
    assert sum(line.get("skipped_no_rejected", 0) for line in lines_of(finished, "instruct")) > 0


def test_what_is_left_is_a_model_with_what_was_frozen_as_it_was(folder: Path, finished: Path) -> None:
    run, stages = prepared(folder, finished)
    instruct, prefer = plan_stages(stages, run)
    assert {path.split("/")[0] for path in prefer.objective.own.shapes} == {"reference"}
    assert set(prefer.abstract.frozen) >= {"encoder", "decoder", "objective"}
    assert not any("objective" in str(path) for path, _ in jax.tree.leaves_with_path(prefer.abstract.optimizer_state))
    begun = flatten_dict(first_parameters(prefer, [instruct], run), sep="/")
    after = flatten_dict(load_model(finished).parameters, sep="/")
    changed = {path for path, leaf in after.items() if not np.array_equal(leaf, begun[path])}
    learned = {path for path in after if path.startswith("connector")} | {f"{path}/kernel" for path in prefer.adapters}
    assert changed == learned and after.keys() == {path for path in begun if not path.startswith("objective")} - {
        path for path in begun if "/adapter/" in path
    }


def test_a_run_that_begins_with_it_takes_its_tokenizer(folder: Path, finished: Path) -> None:
    changes = [f"model.weights={finished}", "model.tokenizer=null"]
    found = make_ingredients(load_run(folder / "run.yaml", changes))
    assert found.tokenizer_files == make_ingredients(load_run(folder / "run.yaml")).tokenizer_files


def test_a_crashed_run_goes_on_bit_identically(folder: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "stages" / "0_instruct", tmp_path / "run" / "stages" / "0_instruct")
    run, stages = prepared(folder, tmp_path / "run", stop_after=3)
    with pytest.raises(CutShortError):
        run_stages(stages, run)
    run, stages = prepared(folder, tmp_path / "run")
    assert run_stages(stages, run) is Outcome.FINISHED
    assert latest_stored_step(run.folder).step == STEPS
    assert [steady(line) for line in lines_of(run.folder)] == [steady(line) for line in lines_of(finished)]
    jax.tree.map(np.testing.assert_array_equal, load_model(run.folder).parameters, load_model(finished).parameters)


def test_a_cached_reference_trains_as_a_live_one(folder: Path, finished: Path, tmp_path: Path, capsys) -> None:
    model = finished / "stages" / "0_instruct" / "checkpoints" / "2"
    for name in ("pairs", "held_out", "spoiled"):
        files = ["--data", f"{folder}/{name}.jsonl", "--output", f"{tmp_path}/{name}.jsonl"]
        assert main(["score", str(model), *files, "--rows", "4"]) == 0
    told = capsys.readouterr().out
    assert "40 pairs with the scores of" in told and "skipped 10: no_rejected" in told
    first = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert first["reference_template"] == "chatml" and "stage instruct, step 2" in first["reference_model"]
    shutil.copytree(finished / "stages" / "0_instruct", tmp_path / "run" / "stages" / "0_instruct")
    scored = [f"data.sources.{name}.files={tmp_path}/{name}.jsonl" for name in ("pairs", "held_out")]
    run, stages = prepared(folder, tmp_path / "run", [CACHED, *scored])
    assert not plan_stages(stages, run)[1].objective.own.shapes
    assert run_stages(stages, run) is Outcome.FINISHED
    for found, expected in zip(lines_of(run.folder), lines_of(finished), strict=True):
        # An accuracy says nothing of margins that are all but 0, as at the first step.
        for name in (name for name in expected if name.endswith(("loss", "reward", "margin", "log_probability"))):
            assert found[name] == pytest.approx(expected[name], abs=1e-4, rel=1e-5), name


def test_a_pair_without_the_score_that_is_needed_is_named_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    scores = {"reference_chosen": -1.0, "reference_rejected": -2.0, "reference_tokens": [7, 8]}
    (tmp_path / "scored.jsonl").write_text("\n".join(json.dumps(line | scores) for line in lines))
    other = f"data.sources.pairs.files={tmp_path}/scored.jsonl"
    for changes, message in (
        ([CACHED], r"pairs.jsonl:\d+ has no reference_chosen.*mllm score"),
        ([CACHED, other], r"was scored by a reference model that read \[7, 8\] tokens"),
    ):
        run, stages = prepared(folder, tmp_path / "run", changes)
        request = FeedRequest(stages[1], "train", batch_sharding(run.mesh), None)
        with pytest.raises(ValueError, match=message):
            next(run.ingredients.open_feed(request))
