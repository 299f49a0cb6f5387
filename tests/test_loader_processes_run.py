"""`mllm train` with processes that load: the same model to the last bit, after an interruption too."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.shards import ImageText, write_shards
from mllm_jax.assemble import make_ingredients
from mllm_jax.cli import main
from mllm_jax.config import load_run
from mllm_jax.interop.model_folder import load_model
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.run import run_stages
from tests.support.described import picture
from tests.support.run_files import TINY_RUN, CutShortError, cut_short, run_of
from tests.support.small_tokenizers import write_tokenizer_folder

RUN_FILE = """
extends: {base}
output: {folder}/run
model:
  connector: {{kind: mlp}}
  tokenizer: {folder}/tokenizer
  chat_template: plain
data:
  lanes: 4
  shuffle_window: 4
  sources:
    pairs: {{kind: webdataset, shards: "{folder}/shards/*.tar"}}
stages:
  - name: align
    mixture: {{pairs: 1}}
    rows: 8
    row_length: 64
    images_per_row: 4
    steps: 4
    trainable: ["**"]
    augmentation: {{flip: 0.5, brightness: 0.3}}
    validation: {{mixture: {{pairs: 1}}, batches: 1, every: 2}}
    schedule: {{peak: 1e-2, warmup: 0}}
"""


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    write_tokenizer_folder(folder / "tokenizer")
    write_shards((ImageText(picture(number), f"red {number}", "png") for number in range(40)), folder / "shards")
    (folder / "run.yaml").write_text(RUN_FILE.format(base=TINY_RUN, folder=folder))
    return str(folder / "run.yaml")


def loading_processes() -> list[str]:
    lines = (path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    commands = [Path(f"/proc/{process}/cmdline").read_text() for line in lines for process in line.split()]
    return [command for command in commands if "data_pipelines.loading" in command]


def test_processes_change_no_parameter(run_file: str, tmp_path: Path) -> None:
    threads, processes = tmp_path / "threads", tmp_path / "processes"
    assert main(["train", run_file, f"output={threads}"]) == 0
    config = load_run(run_file, [f"output={processes}", "data.processes=3"])
    ingredients = cut_short(make_ingredients(config), "align", 3)
    with pytest.raises(CutShortError):
        run_stages(config.stages, replace(run_of(config, ingredients, save_every=2), mesh=make_mesh(MeshConfig())))
    assert not loading_processes()
    assert main(["train", run_file, f"output={processes}", "data.processes=2"]) == 0
    assert not loading_processes()
    expected, found = load_model(threads).parameters, load_model(processes).parameters
    assert jax.tree.all(jax.tree.map(np.array_equal, expected, found))
