"""One call loads a model from wherever it stands; what cannot be loaded says why in one message."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from data_pipelines.transforms.templates import CHATML, TEMPLATES, VICUNA_V1
from mllm_jax.checkpoint.checkpointer import Checkpointer
from mllm_jax.checkpoint.description import make_description
from mllm_jax.checkpoint.layout import stage_folder
from mllm_jax.interop.export import export
from mllm_jax.interop.hugging_face import import_folder
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from tests.support.hugging_face_folders import tiny_tokenizer, write_decoder, write_llava


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "theirs"
    write_llava(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(llava: Path) -> LoadedModel:
    return load_model(llava, chat_template=VICUNA_V1)


def save_run(run: Path, loaded: LoadedModel, steps: tuple[int, ...]) -> None:
    """A run whose one stage has trained connector and decoder; at step `n` the decoder's final norm is `n`."""
    stage = stage_folder(run, 0, "align")
    frozen = {"encoder": loaded.parameters["encoder"]}
    description = make_description(
        {"model": loaded.description.model_dump(mode="json")}, "align", ("decoder/**",), {}, loaded.tokenizer.files()
    )
    checkpointer = Checkpointer(stage, keep=2)
    checkpointer.save_frozen(frozen)
    for step in steps:
        decoder = {**loaded.parameters["decoder"]}
        decoder["final_norm"] = {"scale": jax.numpy.full_like(decoder["final_norm"]["scale"], step)}
        trained = {"connector": loaded.parameters["connector"], "decoder": decoder}
        checkpointer.save(step, trained, {"count": np.zeros(())}, {}, description)
    checkpointer.wait()
    checkpointer.close()


def test_a_run_directory_gives_its_newest_checkpoint_and_a_checkpoint_itself(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    save_run(tmp_path / "run", loaded, steps=(3, 7))
    for path, step in (
        (tmp_path / "run", 7),
        (tmp_path / "run" / "stages" / "0_align", 7),
        (tmp_path / "run" / "stages" / "0_align" / "checkpoints" / "3", 3),
    ):
        found = load_model(path)
        assert found.description == loaded.description
        assert found.tokenizer.files() == loaded.tokenizer.files()
        assert np.all(np.asarray(found.parameters["decoder"]["final_norm"]["scale"]) == step)
        assert_equal(found.parameters["encoder"], loaded.parameters["encoder"])
        assert f"stage align, step {step}" in found.source


def test_parameters_go_onto_a_mesh(llava: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    import_folder(llava, tmp_path / "imported")
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    for folder in (llava, tmp_path / "imported"):
        sharded = load_model(folder, mesh=mesh)
        kernel = sharded.parameters["decoder"]["blocks"]["feed_forward"]["up"]["kernel"]
        assert len(kernel.sharding.device_set) == 8
        assert kernel.addressable_shards[0].data.shape[1] * 4 == kernel.shape[1]
        assert_equal(sharded.parameters, loaded.parameters)


def assert_equal(found: dict, expected: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "llama2", "chatml"])
def test_the_chat_template_of_an_exported_folder_is_known_again(tmp_path: Path, loaded: LoadedModel, name: str) -> None:
    description = loaded.description.model_copy(update={"chat_template": TEMPLATES[name]})
    export(replace(loaded, description=description), tmp_path / "exported")
    assert load_model(tmp_path / "exported").chat_template == TEMPLATES[name]


def test_a_foreign_chat_template_is_known_by_its_marks(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    assert load_model(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}")
    assert load_model(tmp_path).chat_template == CHATML


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model: expected a run directory"):
        load_model(tmp_path)


def changed(llava: Path, folder: Path, **config: object) -> Path:
    folder.mkdir()
    for file in llava.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"quantization_config": {"bits": 4}}, "quantised weights cannot be imported"),
        ({"vision_feature_layer": [-2, -1]}, "only a single layer"),
        ({"image_token_index": 7}, "<image> has the id 4 in the tokenizer, but config.json says"),
    ],
)
def test_a_config_that_cannot_be_imported(tmp_path: Path, llava: Path, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_folder(changed(llava, tmp_path / "changed", **config), tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_weights_that_do_not_fit_are_all_named(tmp_path: Path, llava: Path) -> None:
    folder = changed(llava, tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    del tensors["multi_modal_projector.linear_1.bias"]
    tensors["multi_modal_projector.linear_2.bias"] = np.zeros(3, np.float32)
    tensors["one_more"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="3 problems") as error:
        import_folder(folder, tmp_path / "imported")
    for name in ("missing multi_modal_projector.linear_1.bias", "misshaped multi_modal", "unexpected one_more"):
        assert name in str(error.value)
    assert not list(tmp_path.glob("*imported*")) and not list(tmp_path.glob(".imported*"))


def test_pickled_weights_are_refused(tmp_path: Path, llava: Path) -> None:
    folder = changed(llava, tmp_path / "changed")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        load_model(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"new{number}" for number in range(400)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, but the embedding has 320 rows only"):
        load_model(tmp_path)


def test_a_parameter_missing_from_an_imported_folder_is_named(tmp_path: Path, llava: Path) -> None:
    import_folder(llava, tmp_path / "imported")
    (tmp_path / "imported" / "parameters" / "connector.layers_0.bias.safetensors").unlink()
    with pytest.raises(ValueError, match="missing connector/layers_0/bias"):
        load_model(tmp_path / "imported")


def test_nothing_is_overwritten(tmp_path: Path, loaded: LoadedModel, llava: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="is there already"):
        export(loaded, tmp_path)
    with pytest.raises(FileExistsError, match="is there already"):
        import_folder(llava, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_what_no_llava_does_is_not_exported(tmp_path: Path, loaded: LoadedModel) -> None:
    features = loaded.config.encoder.features.model_copy(update={"post_norm": True})
    for update, message in (
        ({"connector": MLPConfig(depth=3)}, "connector of kind 'mlp' and depth 2"),
        ({"encoder": loaded.config.encoder.model_copy(update={"features": features})}, "without the final norm"),
    ):
        model = loaded.config.model_copy(update=update)
        other = replace(loaded, description=loaded.description.model_copy(update={"model": model}))
        with pytest.raises(ValueError, match=message):
            export(other, tmp_path / "exported")
    assert not list(tmp_path.iterdir())
