"""Run files: what is merged with what, where each value came from, and what a wrong file is told."""

import pytest

from mllm_jax.run_file import RunFileError, read_run_file


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, text: str):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


def test_extends_merges_mappings_and_keeps_the_line_of_every_value(write):
    write("base.yaml", "model:\n  encoder: {preset: a}\n  decoder: {preset: b}\nrows: 8\n")
    path = write("run.yaml", "extends: base.yaml\nmodel:\n  encoder: {preset: c}\n")

    raw = read_run_file(path)

    assert raw.values == {"model": {"encoder": {"preset": "c"}, "decoder": {"preset": "b"}}, "rows": 8}
    assert raw.origin(("model", "encoder", "preset")).endswith("run.yaml:3")
    assert raw.origin(("model", "decoder", "preset")).endswith("base.yaml:3")


def test_a_mapping_over_the_stage_list_changes_the_stage_of_that_name(write):
    write("base.yaml", "stages:\n  - {name: align, steps: 5}\n  - {name: instruct, steps: 7}\n")
    path = write("run.yaml", "extends: base.yaml\nstages:\n  instruct: {steps: 9}\n")

    raw = read_run_file(path)

    assert raw.values["stages"] == [{"name": "align", "steps": 5}, {"name": "instruct", "steps": 9}]
    assert raw.origin(("stages", 1, "steps")).endswith("run.yaml:3")


def test_overrides_name_stages_by_name_or_number_and_read_numbers_as_people_write_them(write):
    path = write("run.yaml", "stages:\n  - {name: align, steps: 5}\n  - {name: instruct, steps: 7}\n")

    raw = read_run_file(path, ["stages.align.steps=10", "stages.1.rate=1e-3", "data.sources.pairs.shards=[a, b]"])

    assert raw.values["stages"] == [{"name": "align", "steps": 10}, {"name": "instruct", "steps": 7, "rate": 0.001}]
    assert raw.values["data"]["sources"]["pairs"]["shards"] == ["a", "b"]
    assert raw.origin(("stages", 0, "steps")) == "command line"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("a: 1\na: 2\n", [], r"run.yaml:2: a: this key is written twice"),
        ("- 1\n", [], r"found a list at the top"),
        ("a: [\n", [], r"not valid YAML"),
        ("extends: nowhere.yaml\n", [], r"run.yaml:1: extends: there is no file .*nowhere.yaml"),
        ("extends: run.yaml\n", [], r"goes round in a circle"),
        ("a: !!python/object/apply:os.system [ls]\n", [], r"not valid YAML"),
        ("a: 1\n", ["a.b=2"], r"a is 1, which has no keys below it"),
        ("a: 1\n", ["a"], r"expected key.path=value"),
        ("stages: [{name: align}]\n", ["stages.aling.steps=2"], r"no entry 'aling'; the entries are: align"),
    ],
)
def test_a_wrong_file_is_told_what_and_where(write, text, overrides, message):
    with pytest.raises(RunFileError, match=message):
        read_run_file(write("run.yaml", text), overrides)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunFileError, match="there is no such run file"):
        read_run_file(tmp_path / "run.yaml")


VARIANTS = """
stages: [{name: align, steps: 5, rows: 2}]
variants:
  tiny: {extends: small.yaml, stages: {align: {steps: 3}}}
  long: {stages: {align: {steps: 50}}}
"""


def test_a_variant_lies_over_the_file_and_under_the_command_line(write):
    write("small.yaml", "width: 4\nstages:\n  align: {steps: 1, rows: 1}\n")
    path = write("run.yaml", VARIANTS)

    raw = read_run_file(path, ["stages.align.rows=7", "variant=tiny"])

    assert raw.values == {"stages": [{"name": "align", "steps": 3, "rows": 7}], "width": 4}
    assert raw.origin(("stages", 0, "steps")).endswith("run.yaml:4")
    assert raw.origin(("width",)).endswith("small.yaml:1")
    assert read_run_file(path).values == {"stages": [{"name": "align", "steps": 5, "rows": 2}]}


def test_a_file_inherits_variants_changes_them_and_may_choose_one(write):
    write("small.yaml", "width: 4\nstages:\n  align: {rows: 1}\n")
    write("base.yaml", VARIANTS)
    path = write("run.yaml", "extends: base.yaml\nvariant: tiny\nvariants:\n  tiny: {stages: {align: {rows: 9}}}\n")

    assert read_run_file(path).values == {"stages": [{"name": "align", "steps": 3, "rows": 9}], "width": 4}
    assert read_run_file(path, ["variant=long"]).values["stages"][0]["steps"] == 50


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (VARIANTS, ["variant=tinny"], "command line: variant: found 'tinny'; this run file has: tiny, long"),
        ("variant: tiny\n", [], "run.yaml:1: variant: found 'tiny'; this run file has: none"),
        ("variants: {tiny: 3}\n", [], "run.yaml:1: variants: expected a mapping of names to changes"),
        ("variants: {tiny: {extends: run.yaml}}\n", [], "goes round in a circle"),
    ],
)
def test_a_wrong_variant_is_told_what_and_where(write, text, overrides, message):
    write("small.yaml", "width: 4\n")
    with pytest.raises(RunFileError, match=message):
        read_run_file(write("run.yaml", text), overrides)
