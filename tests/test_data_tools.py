"""`mllm data stats` and `mllm data bench` as a user calls them, and what docs/data_stats.md says of them."""

import json
import re
from pathlib import Path

import pytest

from data_pipelines.shards import ImageText, write_shards
from data_pipelines.statistics.copies import LIMIT
from data_pipelines.statistics.histogram import ACCURACY
from data_pipelines.statistics.row_statistics import LANES, ROWS
from data_pipelines.statistics.sample import SPREAD
from data_pipelines.statistics.source_statistics import MEASURES
from mllm_jax.cli import build_parser, main
from mllm_jax.training.host_cores import ACCELERATORS
from tests.support.captioned_colours import CAUSES, SAMPLES, write_captioned_colours
from tests.support.small_tokenizers import word_pieces, write_bert

PAGE = Path(__file__).parents[1] / "docs" / "data_stats.md"
RUN_FILE = """
extends: base.yaml
model:
  connector:
    {{kind: q_former, queries: 2, width: 32, layers: 2, heads: 2, feed_forward_width: 32, stack: {{scan: false}}}}
data:
  lanes: 2
  sources:
    nothing: {{kind: webdataset, shards: "{folder}/nothing.tar"}}
    bad: {{kind: webdataset, shards: "{folder}/bad/*.tar"}}
stages:
  - {{name: align, mixture: {{pairs: 3, held_out: 1}}, rows: 4, row_length: 48, images_per_row: 3, steps: 4,
      trainable: ["connector/**"]}}
  - name: represent
    mixture: {{pairs: 1}}
    objective:
      {{kind: q_former, text: {{tokenizer: {folder}/bert, vocab_size: {words}, max_positions: 8}}, text_tokens: 6,
        width: 16}}
    rows: 4
    row_length: 6
    images_per_row: 1
    steps: 4
    trainable: ["connector/**"]
"""


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_captioned_colours(folder)
    write_bert(folder / "bert")
    (folder / "nothing.tar").write_bytes(b"\0" * 10240)
    write_shards([ImageText(b"no image", "a caption", "png")] * 3, folder / "bad")
    (folder / "run.yaml").write_text(RUN_FILE.format(folder=folder, words=len(word_pieces()) + 1))
    return str(folder / "run.yaml")


def told(arguments: list[str], capsys) -> dict:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_statistics_are_told_and_written(run_file, tmp_path, capsys):
    found = told(["data", "stats", run_file, "--json", "--output", str(tmp_path / "found")], capsys)
    align, represent = found["stages"]
    assert (align["stage"], align["template"]) == ("align", "plain")
    assert (represent["stage"], represent["template"]) == ("represent", None)
    pairs = align["sources"]["pairs"]
    assert pairs["records"] == SAMPLES and pairs["skipped"] == dict.fromkeys(CAUSES, 1)
    assert pairs["image_width"]["most"] == pairs["image_height"]["least"] == 8
    # Two queries and a caption of two letters; a text beside an image has no place for it.
    assert pairs["tokens"]["least"] > represent["sources"]["pairs"]["tokens"]["most"] - 2
    rows = align["rows"]
    assert rows["sources"]["pairs"]["record_share"] == pytest.approx(0.75, abs=0.05)
    assert 0 < rows["padding_share"] < 1 and rows["image_slot_share"] > 0.9
    assert represent["rows"]["sources"].keys() == {"pairs"}
    written = tmp_path / "found"
    assert json.loads((written / "stats.json").read_text()) == found
    assert sorted(path.name for path in written.iterdir()) == ["align.svg", "represent.svg", "stats.json"]


def test_statistics_print_tables(run_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["data", "stats", run_file, "--stage", "align"]) == 0
    out = capsys.readouterr().out
    for line in ("records", "left out", CAUSES[0], "supervised share", *MEASURES.values(), "texts that are copies"):
        assert line in out, line
    assert "packed rows" in out and "weight in the mixture" in out and "stage represent" not in out


def test_a_sample_is_the_same_every_time(run_file, capsys):
    asked = ["data", "stats", run_file, "--stage", "align", "--records", "40", "--json"]
    first = told(asked, capsys)
    assert first == told(asked, capsys)
    assert {each["records"] for each in first["stages"][0]["sources"].values()} == {40}


def test_a_source_of_which_nothing_is_usable_is_counted_and_would_stop_a_run(run_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["data", "stats", run_file, "stages.align.mixture.bad=12", "--stage", "align"]) == 0
    out = capsys.readouterr().out
    assert "image_unsupported" in out and "3 (100.00%)" in out
    assert "a run would stop: " in out and "more than skip_quota = 0.2 allows" in out


def test_a_source_that_gives_no_row_is_counted_all_the_same(run_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["data", "stats", run_file, "stages.align.row_length=4", "--stage", "align"]) == 0
    out = capsys.readouterr().out
    assert "too_long" in out and "packed rows" not in out
    assert "a run would stop: Source 'pairs' gave no usable record" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "--stage", "algin"], "there is no stage 'algin'. Did you mean 'align'? Stages: align, represent"),
        (["stats", "--records", "0"], "--records: found 0, expected at least 1"),
        (["stats", "stages.align.mixture.nothing=1"], "data.sources.nothing: the 1 shard from"),
        (["bench", "--stage", "x"], "there is no stage 'x'. Stages: align, represent"),
        (["bench", "--seconds", "0"], "--seconds: found 0, expected more than 0"),
        (["bench", "--accelerator", "v5"], "found 'v5', expected one of v5e, v5p, v6e, h100, a100. Did you mean 'v5"),
        (["bench", "--accelerator", "a100", "--devices", "0"], "--devices: found 0, expected at least 1"),
        (["bench", "--accelerator", "a100", "--mfu", "50"], "--mfu: found 50, expected a share of the peak"),
        (["bench", "--devices", "8"], "--devices: say of which kind by --accelerator"),
        (["bench", "--accelerator", "a100", "--stage", "represent"], "of objective 'q_former' is not one pass"),
        (["bench", "stages.align.mixture={nothing: 1}"], "hold no record at all"),
    ],
)
def test_what_cannot_be_is_one_clear_message(run_file, arguments, message, capsys):
    verb, *rest = arguments
    overrides = [each for each in rest if "=" in each]
    options = [each for each in rest if "=" not in each]
    assert main(["data", verb, run_file, *overrides, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mllm: ") and message in error and error.count("\n") == 1


def test_plots_without_matplotlib_name_what_to_install(run_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["data", "stats", run_file, "--output", str(tmp_path / "found")]) == 1
    assert "pip install 'mllm_jax[statistics]'" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()


def test_a_bench_counts_the_cores_that_devices_need(run_file, capsys):
    asked = ["data", "bench", run_file, "--seconds", "0.1", "--accelerator", "v5e", "--devices", "8", "--json"]
    found = told(asked, capsys)
    loader, needed = found["loader"], found["needed"]
    assert found["stage"] == "align" and found["wanted"] == {"accelerator": "v5e", "devices": 8, "mfu": 0.5}
    rows = 8 * 0.5 * 197e12 / found["flops_per_row"]
    assert needed["hosts"] == 2 and needed["rows_per_second"] == pytest.approx(rows)
    assert needed["images_per_second"] == pytest.approx(rows * loader["images_per_row"])
    cores = rows * loader["samples_per_row"] * loader["cpu_ms_per_sample"] / 1000
    assert needed["cores"] == pytest.approx(cores) and needed["cores_per_host"] == pytest.approx(cores / 2)
    assert found["process_samples_per_second"] == pytest.approx(1000 / loader["packing_ms_per_sample"])


def test_a_bench_tells_one_process_from_several(run_file, capsys):
    found = told(["data", "bench", run_file, "data.processes=2", "--seconds", "0.1", "--json"], capsys)
    one, several, undecoded = found["loader"], found["spread"], found["spread_undecoded"]
    assert (one["processes"], several["processes"], undecoded["processes"]) == (0, 2, 2)
    assert one["gathering_ms_per_sample"] is None and several["packing_ms_per_sample"] > 0
    assert found["gathered_samples_per_second"] == pytest.approx(1000 / several["gathering_ms_per_sample"])


def test_a_bench_prints_tables(run_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    asked = ["--seconds", "0.1", "--accelerator", "h100", "--mfu", "0.4"]
    assert main(["data", "bench", run_file, "data.processes=1", *asked]) == 0
    out = capsys.readouterr().out
    assert "one process" in out and "1 process beside it" in out and "of gathering" in out
    assert "CPU ms a sample" in out and "for 8 x h100 at an MFU of 0.4" in out and "cores a host (1 host of 8" in out


def test_the_page_says_what_the_verbs_do():
    page = PAGE.read_text()
    options = {"--" + name for name in re.findall(r"`--([a-z]+)", page)}
    for verb in ("stats", "bench"):
        parsed = build_parser().parse_args(["data", verb, "run.yaml"])
        known = {f"--{name}" for name in vars(parsed)} - {"--run", "--run_file", "--overrides", "--traceback"}
        assert known <= options, f"docs/data_stats.md does not name {known - options} of mllm data {verb}"
        options -= known - {"--stage", "--json"}
    assert options == {"--stage", "--json"}
    for number in (LANES, ROWS, SPREAD, LIMIT):
        assert re.search(rf"\b{number:,}\b", page), number
    assert f"{ACCURACY:.0%}".replace("%", " %") in page
    for label in MEASURES.values():
        assert f"| {label} |" in page, label
    for name, accelerator in ACCELERATORS.items():
        assert f"| `{name}` | {accelerator.peak / 1e12:.0f} | {accelerator.devices_per_host} |" in page, name
