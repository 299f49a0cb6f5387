"""A run file may name several vision encoders, whose features are concatenated."""

from pathlib import Path

import pytest

from mllm_jax.config import load_run, resolved_yaml
from mllm_jax.model_choice import multimodal_config
from mllm_jax.models.fused import FusedConfig
from mllm_jax.models.multimodal import image_tokens
from mllm_jax.run_file import RunFileError

RUN = """
output: run
model:
  encoder:
    preset: dinov2_small
    architecture: {image_size: [224, 224]}
    fused_with: [{preset: siglip_so400m_14_224, architecture: {layers: 3}}]
  connector: {kind: mlp}
  decoder: {preset: tiny_llama}
  tokenizer: folder
  chat_template: vicuna_v1
data: {lanes: 2, sources: {pairs: {kind: webdataset, shards: "*.tar"}}}
stages:
  - {name: align, mixture: {pairs: 1}, rows: 4, row_length: 64, images_per_row: 2, steps: 3, trainable: ["**"]}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def test_two_encoders(run_file: Path) -> None:
    run = load_run(run_file, check_paths=False)
    model = multimodal_config(run.model, tokens=10)
    assert isinstance(model.encoder, FusedConfig)
    assert (model.encoder.width, model.encoder.parts[1].layers, image_tokens(model)) == (384 + 1152, 3, 256)
    assert run.model.image_transform["size"] == [224, 224]
    run_file.write_text(resolved_yaml(run))
    assert load_run(run_file, check_paths=False) == run


def test_encoders_that_cut_images_otherwise_are_refused(run_file: Path) -> None:
    change = "model.encoder.architecture.image_size=[112, 112]"
    with pytest.raises(RunFileError, match=r"model\.encoder: .*parts\.1 has \(16, 16\) patches"):
        load_run(run_file, [change], check_paths=False)
