"""Commands that are given a model or plain files read remote data as a run's `data.storage` says."""

import io
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.shards import ImageText, write_shards
from data_pipelines.storage import StorageConfig
from data_pipelines.transforms.templates import VICUNA_V1
from mllm_jax.chosen_storage import chosen_storage
from mllm_jax.cli import main
from mllm_jax.interop.export import export
from mllm_jax.interop.model_folder import load_model
from mllm_jax.run_file import RunFileError
from tests.support.hugging_face_folders import write_llava
from tests.support.range_server import range_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(encoded, "PNG")
    captions = [f"number {number} is red as the {number * 7919} others are" for number in range(60)]
    (shard,) = write_shards((ImageText(encoded.getvalue(), caption) for caption in captions), folder, 60)
    with range_server() as server:
        server.files = {"0.tar": Path(shard).read_bytes(), "red.png": encoded.getvalue()}
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_llava(folder / "theirs")
    export(load_model(folder / "theirs", chat_template=VICUNA_V1), folder / "exported")
    return str(folder / "exported")


@pytest.fixture
def run(tmp_path):
    """A run directory whose run file says where blocks are kept."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text(f"data: {{storage: {{cache: {tmp_path}/cache, attempts: 3}}}}\n")
    return folder


def test_the_storage_is_that_of_the_run_that_is_named_or_that_a_model_comes_from(run, tmp_path):
    said = StorageConfig(cache=f"{tmp_path}/cache", attempts=3)
    checkpoint = run / "stages" / "0_align" / "checkpoints" / "7"
    checkpoint.mkdir(parents=True)
    assert chosen_storage(str(run)).config == chosen_storage(str(run / "run.yaml")).config == said
    assert chosen_storage(model=str(run)).config == chosen_storage(model=str(checkpoint)).config == said
    assert chosen_storage().config == chosen_storage(model=str(tmp_path)).config == StorageConfig()
    (tmp_path / "other.yaml").write_text("output: there\n")
    assert chosen_storage(str(tmp_path / "other.yaml"), model=str(run)).config == StorageConfig()


def test_a_run_that_is_none_or_is_wrong_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run directory: it holds no run\.yaml"):
        chosen_storage(str(tmp_path))
    (run / "run.yaml").write_text("data:\n  storage: {cash: here}\n")
    with pytest.raises(RunFileError, match=r"run\.yaml:2: data\.storage\.cash: unknown key\. Did you mean"):
        chosen_storage(str(run))


COMMANDS = {
    "eval": ["eval", "{model}", "--data", "{shard}", "--limit", "2", "--max-new-tokens", "2", "--rows", "2"],
    "generate": ["generate", "--model", "{model}", "--image", "{image}", "--prompt", "What?", "--max-new-tokens", "2"],
    "tokenizer": ["tokenizer", "train", "{shard}", "--output", "{out}/t.model", "--vocabulary", "290"],
    "verify": ["data", "verify", "{shard}"],
    "index": ["data", "index", "{shard}", "--cache", "{out}"],
    "build": ["data", "build", "{shard}", "{out}/built"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_keeps_blocks_where_the_run_says(command, model, server, run, tmp_path):
    places = {"model": model, "shard": server.address("0.tar"), "image": server.address("red.png"), "out": tmp_path}
    asked = [part.format_map(places) for part in COMMANDS[command]]
    server.faults = [503, 503]
    assert main([*asked, "--storage", str(run)]) == 0
    assert list((tmp_path / "cache").rglob("*.block"))


def test_a_build_of_a_run_files_source_reads_as_that_file_says(server, run, tmp_path):
    run_file = run / "run.yaml"
    source = f"sources: {{pairs: {{kind: webdataset, shards: '{server.address('0.tar')}'}}}}"
    run_file.write_text(f"data:\n  {source}\n  storage: {{cache: {tmp_path}/cache}}\n")
    assert main(["data", "build", str(run_file), str(tmp_path / "built")]) == 0
    assert list((tmp_path / "cache").rglob("*.block"))
