"""Folders that cannot be imported are refused by one error that names the tensor or the key; no tensor is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllm_jax.interop.hugging_face import import_folder
from mllm_jax.interop.safetensors_folder import SafetensorsFolder
from tests.support.hugging_face_folders import write_decoder

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_decoder(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good folder, to be spoiled; reading a tensor of it fails the test."""

    def read(self: SafetensorsFolder, name: str) -> None:
        pytest.fail(f"{name} was read")

    monkeypatch.setattr(SafetensorsFolder, "read", read)
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        import_folder(folder, folder / "imported")
    assert str(folder) in str(caught.value)
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba' in config.json"),
        ({"quantization_config": {"quant_method": "awq"}}, r"config.json has quantization_config \(quant_method awq\)"),
        (
            {"vision_config": {"quantization_config": {"quant_method": "fp8"}}},
            r"config.json has vision_config.quantization_config \(quant_method fp8\)",
        ),
        ({"intermediate_size": 48}, rf"misshaped {NAME} in model.safetensors: found \[52, 36\], expected \[48, 36\]"),
        ({"num_hidden_layers": 3}, "missing model.layers.2.mlp.up_proj.weight"),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1.mlp.up_proj.weight in model.safetensors"),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_a_tensor_of_quantised_numbers(folder: Path, dtype: torch.dtype, kind: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {NAME: tensors[NAME].to(dtype)}, folder / "model.safetensors")
    assert_refused(folder, f"{NAME} in model.safetensors holds {kind} numbers")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_alone(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert_refused(folder, rf"holds only pickled weights \({name}\)")


@pytest.mark.parametrize("kept", [0, 5, 2000, -1])
def test_a_file_that_ends_early(folder: Path, kept: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:kept])
    assert_refused(folder, "model.safetensors is not a whole safetensors file")


def test_an_index_that_names_what_is_not_there(folder: Path) -> None:
    names = dict.fromkeys([*load_file(folder / "model.safetensors"), "lost.weight"], "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert_refused(folder, r"names tensors that are not in their files: lost.weight \(model.safetensors\)")
