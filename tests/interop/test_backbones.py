"""A run's encoder and decoder start from whatever folder holds them, however their stacks are compiled."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mllm_jax.interop.backbones import architecture_of, load_backbone
from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.hugging_face import import_folder
from mllm_jax.interop.imported_folder import write_imported
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.parameters import Parameters, abstract_parameters
from mllm_jax.models.vit import ViTConfig
from tests.support.hugging_face_folders import write_decoder, write_tower


def read(folder: Path, config: ViTConfig | DecoderConfig) -> Parameters:
    here = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract_parameters(config)
    )
    return load_backbone(str(folder), config, abstract).parameters


def unscanned(config: ViTConfig | DecoderConfig) -> ViTConfig | DecoderConfig:
    return config.model_copy(update={"stack": StackConfig(scan=False)})


@pytest.fixture(params=[ViTConfig, DecoderConfig])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, ViTConfig | DecoderConfig]:
    if request.param is ViTConfig:
        write_tower(tmp_path / "theirs", "clip")
    else:
        write_decoder(tmp_path / "theirs")
    return tmp_path, architecture_of(str(tmp_path / "theirs"), request.param)


def test_an_unscanned_model_reads_an_imported_folder(folder: tuple[Path, ViTConfig | DecoderConfig]) -> None:
    path, config = folder
    import_folder(path / "theirs", path / "imported")
    found = read(path / "imported", unscanned(config))
    assert "blocks_1" in found and "blocks" not in found
    jax.tree.map(np.testing.assert_array_equal, found, read(path / "theirs", unscanned(config)))


def test_a_scanned_model_reads_a_folder_of_an_unscanned_one(folder: tuple[Path, ViTConfig | DecoderConfig]) -> None:
    path, config = folder
    stored = jax.tree_util.tree_leaves_with_path(read(path / "theirs", unscanned(config)))
    leaves = (("/".join(key.key for key in keys), np.asarray(leaf)) for keys, leaf in stored)
    write_imported(path / "imported", ModelDescription(model=unscanned(config)), leaves, None)
    found = read(path / "imported", config)
    jax.tree.map(np.testing.assert_array_equal, found, read(path / "theirs", config))
