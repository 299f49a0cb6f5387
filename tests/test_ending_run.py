"""Stages whose data end: from a run file to the last checkpoint, whatever interrupts them."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_pipelines.indexing import index_shards
from mllm_jax.assemble import make_ingredients
from mllm_jax.config import RunConfig, load_run
from mllm_jax.run_file import RunFileError
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.plan import Run
from mllm_jax.training.run import Outcome, run_stages
from tests.support.captioned_colours import KINDS, SAMPLES, write_captioned_colours
from tests.support.run_files import CutShortError, cut_short, run_of

RUN_FILE = """
extends: base.yaml
stages:
  - name: align
    mixture: {pairs: {epochs: 1}, held_out: {epochs: 1.5}}
    validation: {mixture: {held_out: {epochs: 1}}, every: 1000}
    rows: 8
    row_length: 48
    images_per_row: 3
    steps: 100
    trainable: ["connector/**"]
    schedule: {peak: 1e-2, warmup: 0}
"""
GIVEN = SAMPLES + 3 * KINDS // 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ending")
    write_captioned_colours(folder)
    (folder / "run.yaml").write_text(RUN_FILE)
    list(index_shards([f"{folder}/shards/*.tar", f"{folder}/held_out/*.tar"]))
    return folder


def loaded(folder: Path, output: str, *overrides: str) -> RunConfig:
    return load_run(folder / "run.yaml", [f"output={folder}/{output}", *overrides])


def lines_of(run: Run) -> list[dict[str, Any]]:
    timed = ("second", "data_wait", "mfu")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not any(word in name for word in timed)} for line in lines]


@pytest.fixture(scope="module")
def finished(folder: Path) -> Run:
    config = loaded(folder, "whole")
    run = run_of(config)
    assert run_stages(config.stages, run) is Outcome.FINISHED
    return run


def test_a_stage_ends_with_its_data(finished: Run) -> None:
    steps = [line for line in lines_of(finished) if "loss" in line]
    last = len(steps)
    assert last < 100 and sum(line["records"] + line["skipped_records"] for line in steps) == GIVEN
    assert (steps[-1]["epochs_pairs"], steps[-1]["epochs_held_out"]) == (1.0, 1.5)
    assert all(line["share_pairs"] + line["share_held_out"] == 1 for line in steps)
    assert "validation_loss" in lines_of(finished)[-1] and lines_of(finished)[-1]["step"] == last
    stage = finished.folder / "stages" / "0_align"
    assert json.loads((stage / "done.json").read_text())["step"] == last
    assert (stage / "checkpoints" / str(last)).is_dir()


@pytest.mark.parametrize("left", [0, 3])
def test_a_run_that_was_cut_off_gives_the_same_steps_to_the_end(folder: Path, finished: Run, left: int) -> None:
    """Also one that had done all of them and came no further than to save the last."""
    last = lines_of(finished)[-1]["step"]
    config = loaded(folder, f"cut-{left}")
    before = cut_short(make_ingredients(config), "align", last - left)
    try:
        run_stages(config.stages, run_of(config, before, save_every=1))
    except CutShortError:
        assert left
    (Path(config.output) / "stages" / "0_align" / "done.json").unlink(missing_ok=True)
    run = run_of(config, save_every=1)
    assert run_stages(config.stages, run) is Outcome.FINISHED
    assert [line.get("loss") for line in lines_of(run)] == [line.get("loss") for line in lines_of(finished)]


def test_the_end_says_what_of_each_source_was_drawn(folder: Path, tmp_path: Path) -> None:
    mixture = "stages.align.mixture={pairs: 1, held_out: 1, exhausted: stop}"
    config = loaded(folder, "stopped", mixture)
    run = run_of(config)
    with (tmp_path / "told").open("w") as file:
        object.__setattr__(run, "console", Console(file=file, width=400))
        run_stages(config.stages, run)
    told = (tmp_path / "told").read_text()
    last = [line for line in lines_of(run) if "loss" in line][-1]
    assert f"the data ended after step {last['step']} of 100; pairs: {last['epochs_pairs']:.4g} of 1 epochs" in told
    assert f"held_out: 1 of 1 epochs, {KINDS} records met, 0 left" in told


def test_a_validation_of_one_epoch_measures_every_record_once(folder: Path) -> None:
    config = loaded(folder, "measured")
    feed = make_ingredients(config).open_feed(FeedRequest(config.stages[0], "validation", None, None))
    keys = [key for batch in feed for key in batch.report.keys]
    feed.close()
    assert len(keys) == len(set(keys)) == KINDS and config.stages[0].validation.most_batches is None


def test_no_row_at_all_is_an_error(folder: Path) -> None:
    config = loaded(folder, "none", "stages.align.mixture={pairs: {epochs: 0.001}}")
    with pytest.raises(ValueError, match="ended before it gave a single row"):
        run_stages(config.stages, run_of(config))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.align.mixture.temperature=2", r"stages\[0\].mixture: source pairs .* run `mllm data index`"),
        ("stages.align.mixture={pairs: {epoch: 1}}", "mixture.pairs.epoch: unknown key. Did you mean 'epochs'"),
        ("stages.align.mixture={pears: {epochs: 1}}", "mixture.pears: there is no source 'pears'. Did you mean"),
        ("data.sources.exhausted={kind: webdataset, shards: x}", "exhausted means something else in a mixture"),
    ],
)
def test_what_no_mixture_can_be_is_told_before_anything_starts(folder: Path, override: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        loaded(folder, "refused", "data.sources.pairs.index=never", "data.sources.held_out.index=never", override)
