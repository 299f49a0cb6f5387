"""Whole multimodal models against transformers: two images in a row of text, random weights, float32."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.multimodal import image_tokens
from mllm_jax.models.vit import FeatureConfig
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    assert_loads_whole,
    assert_same_gradients,
    assert_same_logits,
    drawn_rows,
    read_config,
    read_parameters,
    stored_names,
    write_folder,
)
from tests.support.proofs import Prover

IMAGE = 60
TOWER = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 30, "patch_size": 8}
TOWERS: dict[str, Any] = {
    "clip": transformers.CLIPVisionConfig(**TOWER, intermediate_size=28),
    "siglip": transformers.SiglipVisionConfig(**TOWER, intermediate_size=28),
    "dinov2": transformers.Dinov2Config(**TOWER, mlp_ratio=2),
}
TEXT = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 4,
}


def make(folder: Path, family: str, **changes: Any) -> torch.nn.Module:
    strategy = "full" if family == "siglip" else "default"
    options = {"image_token_index": IMAGE, "vision_feature_select_strategy": strategy} | changes
    tied = options.get("tie_word_embeddings", False)
    text = transformers.LlamaConfig(**TEXT, tie_word_embeddings=tied)
    config = transformers.LlavaConfig(vision_config=TOWERS[family], text_config=text, **options)
    model = randomise(transformers.LlavaForConditionalGeneration(config))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=TOWERS)
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, make(folder, request.param, tie_word_embeddings=request.param == "dinov2")


@pytest.mark.parametrize("scan", [True, False])
def test_logits_with_images(llava: tuple[Path, torch.nn.Module], scan: bool, proven: Prover) -> None:
    folder, model = llava
    config = read_config(folder, scan)
    proven(folder, "import", assert_same_logits(config, read_parameters(folder, config), model, IMAGE))


@pytest.mark.parametrize("scan", [True, False])
def test_exported_weights_are_the_imported_ones(
    llava: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = llava
    config = read_config(folder, scan)
    exported = tmp_path / "exported"
    write_folder(exported, config, read_parameters(folder, config), image_token_index=IMAGE)
    assert_loads_whole(transformers.LlavaForConditionalGeneration, exported, model)
    assert read_config(exported, scan) == config
    proven(folder, "export")


@pytest.mark.parametrize("family", TOWERS)
def test_gradients_of_one_step(tmp_path: Path, family: str, proven: Prover) -> None:
    model = make(tmp_path, family)
    config = read_config(tmp_path)
    assert_same_gradients(config, tmp_path, model, *drawn_rows(config, IMAGE))
    proven(tmp_path, "train")


def test_layer_and_strategy_are_taken_from_the_config(tmp_path: Path) -> None:
    model = make(tmp_path, "clip", vision_feature_layer=-1, vision_feature_select_strategy="full")
    config = read_config(tmp_path)
    assert config.encoder.features == FeatureConfig(layer=-1, keep_class_token=True)
    assert_same_logits(config, read_parameters(tmp_path, config), model, IMAGE)


def test_names_as_transformers_5_holds_them_are_read_too(tmp_path: Path) -> None:
    model = make(tmp_path, "clip")
    config = read_config(tmp_path)
    expected = read_parameters(tmp_path, config)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "model.vision_tower.embeddings.class_embedding" in stored_names(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, read_parameters(tmp_path, config), expected))


def test_names_of_the_first_published_models_are_read_too(tmp_path: Path) -> None:
    make(tmp_path, "clip")
    config = read_config(tmp_path)
    expected = read_parameters(tmp_path, config)
    stored = load_file(tmp_path / "model.safetensors")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in stored.items()}
    old["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(10)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert jax.tree.all(jax.tree.map(np.array_equal, read_parameters(tmp_path, config), expected))


def test_keys_that_a_config_leaves_out_have_transformers_defaults() -> None:
    """The config.json of llava-1.5-7b-hf says no more than this of its parts."""
    config = {
        "model_type": "llava",
        "text_config": {
            "model_type": "llama",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "vocab_size": 32064,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    ours = family_of_folder(config).from_hugging_face(config)
    assert image_tokens(ours) == 576
    assert (ours.decoder.width, ours.decoder.layers, ours.decoder.kv_heads) == (4096, 32, 32)
    theirs = transformers.LlavaConfig(**json.loads(json.dumps(config)))
    assert theirs.text_config.rope_parameters["rope_theta"] == ours.decoder.rope_theta
    assert theirs.text_config.head_dim == ours.decoder.head_width


def test_what_a_llava_cannot_be_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "clip")
    config = read_config(tmp_path)
    normed = config.encoder.model_copy(update={"features": FeatureConfig(post_norm=True)})
    for change, message in [
        ({"connector": LinearConfig()}, "connector of kind 'mlp' and depth 2"),
        ({"encoder": normed}, "post_norm is true"),
        ({"encoder": config.encoder.model_copy(update={"layer_scale": True})}, "like no family"),
    ]:
        with pytest.raises(FamilyError, match=message):
            family_of_config(config.model_copy(update=change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": [-2, -1]}, "only a single layer"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "a patch would be lost"),
        ({"vision_config": {"model_type": "pixtral"}}, "'pixtral' in config.json; blip_2_vision_model, clip"),
        ({"text_config": {"model_type": "mamba"}}, r"model_type is 'mamba' in config.json; .*llama.* can be imported"),
        ({"text_config": {"rope_scaling": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu' in config.json, but only 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantised weights cannot be imported"),
    ],
)
def test_configs_that_cannot_be_carried_over_are_refused(change: dict[str, Any], message: str) -> None:
    config = {"model_type": "llava", "vision_config": {}, "text_config": {}} | change
    with pytest.raises(FamilyError, match=message):
        family_of_folder(config).from_hugging_face(config)
