"""The whole demo on a handful of scenes: every part is called and leaves what it should."""

import pytest

from mllm_jax.demo.dataset import DatasetConfig
from mllm_jax.demo.run import DemoFolder, run_demo

SHORT = (
    "data.lanes=2",
    "stages.0.rows=8",
    "stages.0.steps=2",
    "stages.1.rows=8",
    "stages.1.steps=2",
)
SMALL = DatasetConfig(pairs=60, chats=40, held_out=8)


@pytest.mark.soak
def test_a_short_demo_leaves_scores_samples_and_an_export_and_is_not_run_twice(tmp_path, capsys, request):
    run_file = request.config.rootpath / "configs" / "demo.yaml"
    folder = DemoFolder(tmp_path / "demo")
    assert run_demo(folder.root, run_file, SHORT, SMALL) == 0
    assert (folder.scores / "scores.json").is_file()
    assert (folder.exported / "config.json").is_file()
    assert list(folder.samples.glob("*.png"))
    capsys.readouterr()
    assert run_demo(folder.root, run_file, SHORT, SMALL) == 0
    assert "The demo is done" in capsys.readouterr().out
