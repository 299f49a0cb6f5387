"""Run files that users copy, and what a wrong one is told."""

import json
from pathlib import Path

import pytest
import yaml

from mllm_jax.config import load_run, resolved_yaml, run_schema
from mllm_jax.model_choice import multimodal_config
from mllm_jax.run_file import RunFileError

CONFIGS = Path(__file__).parent.parent / "configs"

SMALL = """
output: {folder}/run
model:
  encoder: {{preset: tiny_vit}}
  connector: {{kind: mlp}}
  decoder: {{preset: tiny_llama}}
  tokenizer: {folder}
  chat_template: vicuna_v1
data:
  lanes: 2
  sources:
    pairs: {{kind: webdataset, shards: "{folder}/*.tar"}}
stages:
  - {{name: align, mixture: {{pairs: 1}}, rows: 4, row_length: 64, images_per_row: 2, steps: 3, trainable: ["**"]}}
"""


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(SMALL.format(folder=tmp_path))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid_and_its_resolved_form_reads_back_the_same(path, tmp_path):
    run = load_run(path, check_paths=False)
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(run))

    assert load_run(again, check_paths=False) == run


def test_changed_fields_of_an_architecture_lie_over_the_preset(run_file):
    run = load_run(run_file, ["model.encoder.architecture.features={layer: -1}"], check_paths=False)
    model = multimodal_config(run.model, tokens=10)

    assert model.encoder.features.layer == -1
    assert run.model.image_transform["size"] == list(model.encoder.image_size)


def test_the_embedding_grows_to_a_multiple_once_the_tokenizer_needs_it(run_file):
    run = load_run(run_file, ["model.decoder.architecture.vocab_size=100"], check_paths=False)

    assert multimodal_config(run.model, tokens=100).decoder.vocab_size == 100
    assert multimodal_config(run.model, tokens=101).decoder.vocab_size == 128


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.encoder.prest=x",
            r"command line: model.encoder.prest: unknown key. Did you mean 'preset'\? Keys here:",
        ),
        (
            "model.encoder.preset=tiny_vti",
            r"model.encoder.preset: there is no preset 'tiny_vti'. Did you mean 'tiny_vit'",
        ),
        ("model.encoder.architecture.widht=4", r"architecture.widht: unknown key. Did you mean 'width'"),
        ("model.encoder.architecture.width=-4", r"architecture.width: found -4, expected greater than 0"),
        (
            "model.image_transform.mode=sqash",
            r"image_transform.mode: found 'sqash', expected 'squash', .* Did you mean",
        ),
        ("model.connector.kind=mpl", r"model.connector.kind: found 'mpl', expected one of .*mlp"),
        ("model.chat_template=chatmll", r"no chat template 'chatmll'. Did you mean 'chatml'"),
        ("stages.align.steps=many", r"stages\[0\].steps: found 'many', expected a valid integer"),
        ("stages.align.steps=0", r"stages\[0\].steps: found 0, expected greater than 0"),
        ("stages.align.rows=5", r"stages\[0\].rows: 5 rows do not divide over data.lanes = 2"),
        ("model.tiling={kind: splittin}", r"model.tiling.kind: found 'splittin', .* Did you mean 'splitting'"),
        ("model.tiling={kind: dynamic, max_tile: 4}", r"model.tiling.max_tile: unknown key. Did you mean 'max_tiles'"),
        ("model.tiling={kind: splitting}", r"images_per_row: found 2, but an image takes up to 17 slots"),
        ("model.tiling={grids: [[2, 2]]}", r"stages\[0\].images_per_row: found 2, but an image takes up to 5 slots"),
        ("stages.align.mixture={piars: 1}", r"mixture.piars: there is no source 'piars'. Did you mean 'pairs'"),
        ("stages.align.schedule.kind=cosin", r"schedule.kind: found 'cosin', expected .* Did you mean 'cosine'"),
        ("data.sources.pairs.shard=x", r"data.sources.pairs.shard: unknown key. Did you mean 'shards'"),
        ("model.decoder.weights=/nowhere", r"model.decoder.weights: there is no folder '/nowhere'"),
        (
            "stages.align.objective={kind: preferense}",
            r"objective.kind: found 'preferense', .* Did you mean 'preference'",
        ),
        ("stages.align.objective={chunk_token: 4}", r"objective.chunk_token: unknown key. Did you mean 'chunk_tokens'"),
        (
            "stages.align.objective={kind: preference, variant: {kind: dop}}",
            r"objective.variant.kind: found 'dop', expected one of .*dpo.* Did you mean 'dpo'",
        ),
        (
            "stages.align.objective={kind: preference, variant: {kind: ipo, betta: 1}}",
            r"objective.variant.betta: unknown key. Did you mean 'beta'",
        ),
        (
            "stages.align.objective={kind: preference, variant: {kind: orpo, reference: cached}}",
            r"objective.variant.reference: unknown key. .*odds_weight",
        ),
        (
            "stages.align.objective={kind: preference}",
            r"stages\[0\].mixture.pairs: found a source of kind webdataset, but objective preference compares two",
        ),
        ("parallel.modell=2", r"parallel.modell: unknown key"),
    ],
)
def test_a_wrong_value_is_told_where_what_and_what_is_allowed(run_file, override, message):
    with pytest.raises(RunFileError, match=message):
        load_run(run_file, [override])


def test_records_may_be_preference_pairs(run_file):
    overrides = ["stages.align.objective={kind: preference}", "data.sources.pairs={kind: records, shards: built/*.tar}"]
    assert load_run(run_file, overrides, check_paths=False).data.sources["pairs"].kind == "records"


def test_all_problems_are_told_at_once_with_their_lines(run_file):
    run_file.write_text(
        run_file.read_text().replace("steps: 3", "steps: 0, stpes: 3").replace("lanes: 2", "lanes: zero")
    )

    with pytest.raises(RunFileError) as told:
        load_run(run_file)

    assert len(str(told.value).splitlines()) == 3
    assert "run.yaml:10: data.lanes: found 'zero'" in str(told.value)


def test_data_that_is_not_there_is_named_before_anything_starts(run_file):
    with pytest.raises(RunFileError, match=r"run.yaml:\d+: data.sources.pairs: .*no file matches"):
        load_run(run_file)


def test_the_schema_describes_what_the_loader_accepts():
    schema = json.loads(run_schema())

    objective = schema["$defs"]["StageConfig"]["properties"]["objective"]
    assert set(objective["discriminator"]["mapping"]) >= {"next_token", "preference"}
    assert set(schema["$defs"]["PreferenceConfig"]["properties"]["variant"]["discriminator"]["mapping"]) == {
        *("dpo", "ipo", "kto", "orpo", "simpo")
    }
    assert {"extends", "output", "model", "data", "stages"} <= set(schema["properties"])
    nano = yaml.safe_load((CONFIGS / "nano.yaml").read_text())
    assert set(nano) <= set(schema["properties"])
