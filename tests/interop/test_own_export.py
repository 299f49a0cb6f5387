"""A model that transformers has no class for leaves as this project's own folder."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.cli import main
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.interop.own_export import export_own
from mllm_jax.models.connectors.average_pool import AveragePoolConfig
from mllm_jax.models.parameters import init_parameters
from tests.support.hugging_face_folders import write_image, write_llava


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose connector pools patches, in this project's folder."""
    folder = tmp_path_factory.mktemp("pooled")
    write_llava(folder / "theirs")
    loaded = load_model(folder / "theirs", chat_template=VICUNA_V1)
    model = loaded.config.model_copy(update={"connector": AveragePoolConfig(kernel=2)})
    parameters = init_parameters(model, jax.random.key(0))
    description = loaded.description.model_copy(update={"model": model})
    export_own(replace(loaded, description=description, parameters=parameters), folder / "own")
    return folder / "own"


def test_it_is_read_back_as_it_was(pooled: Path, tmp_path: Path) -> None:
    loaded: LoadedModel = load_model(pooled)
    export_own(loaded, tmp_path / "again", dtype="bfloat16")
    again = load_model(tmp_path / "again")
    assert again.description == loaded.description
    assert again.tokenizer.files() == loaded.tokenizer.files()
    for path, leaf in flatten_dict(loaded.parameters, sep="/").items():
        expected = np.asarray(leaf.astype("bfloat16").astype("float32"))
        found = flatten_dict(again.parameters, sep="/")[path]
        np.testing.assert_array_equal(np.asarray(found.astype("float32")), expected, err_msg=path)


def test_the_command_says_why_transformers_cannot_hold_it_and_what_can(
    pooled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(pooled), str(tmp_path / "theirs")]) == 1
    said = capsys.readouterr().err
    assert (
        "LLaVA models have a connector of kind 'mlp'" in said
        and "--format mllm" in said
        and not (tmp_path / "theirs").exists()
    )
    assert main(["export", str(pooled), str(tmp_path / "own"), "--format", "mllm"]) == 0
    assert main(["export", str(pooled), str(tmp_path / "x"), "--format", "mllm", "--connector-only"]) == 1
    assert "--connector-only and --format mllm: give one of them" in capsys.readouterr().err
    image = write_image(tmp_path / "image.png")
    answers = []
    for folder in (pooled, tmp_path / "own"):
        arguments = ["--model", str(folder), "--image", str(image), "--prompt", "What is it?", "--max-new-tokens", "5"]
        assert main(["generate", *arguments, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["tokens"])
    assert answers[0] == answers[1]


def test_its_page_is_true(pooled: Path) -> None:
    """The example runs, and every path of the table is there or belongs to models with instructions."""
    page = (Path(__file__).parents[2] / "docs/folder.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    names: dict = {}
    exec(
        example[1]
        .replace("OUT/parameters/connector.layers_0", f"{pooled}/parameters/encoder.patch_embedding")
        .replace("connector/layers_0", "encoder/patch_embedding"),
        names,
    )
    assert names["kernel"].ndim >= 2
    places = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert [(pooled / place.split("<")[0]).exists() for place in places] == [True, True, True, False]
