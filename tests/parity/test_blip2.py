"""Whole BLIP-2 models against transformers: two images in a row of text, random weights, float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.multimodal import image_tokens
from mllm_jax.models.vit import FeatureConfig
from tests.support.hugging_face_folders import randomise, text_config
from tests.support.parity import (
    assert_loads_whole,
    assert_same_gradients,
    assert_same_logits,
    drawn_rows,
    read_config,
    read_parameters,
    write_folder,
)
from tests.support.proofs import Prover

IMAGE = 60
TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "image_size": 30,
    "patch_size": 8,
}
Q_FORMER = {"hidden_size": 18, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 20}
TEXTS: dict[str, Any] = {
    "llama": text_config(vocabulary=61),
    "opt": transformers.OPTConfig(
        vocab_size=61,
        hidden_size=20,
        word_embed_proj_dim=20,
        num_hidden_layers=2,
        num_attention_heads=5,
        ffn_dim=28,
        max_position_embeddings=64,
    ),
}


def make(folder: Path, text: str) -> torch.nn.Module:
    config = transformers.Blip2Config(
        vision_config=TOWER,
        qformer_config=Q_FORMER,
        text_config=TEXTS[text].to_dict(),
        num_query_tokens=5,
        image_token_index=IMAGE,
    )
    model = randomise(transformers.Blip2ForConditionalGeneration(config))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=TEXTS)
def blip2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, make(folder, request.param)


@pytest.mark.parametrize("scan", [True, False])
def test_logits_and_exported_weights(
    blip2: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = blip2
    config = read_config(folder, scan)
    assert image_tokens(config) == 5
    parameters = read_parameters(folder, config)
    proven(folder, "import", assert_same_logits(config, parameters, model, IMAGE))
    exported = tmp_path / "exported"
    write_folder(exported, config, parameters, image_token_index=IMAGE)
    assert_loads_whole(transformers.Blip2ForConditionalGeneration, exported, model)
    assert read_config(exported, scan) == config
    proven(folder, "export")


def test_gradients_of_one_step(tmp_path: Path, proven: Prover) -> None:
    model = make(tmp_path, "opt")
    config = read_config(tmp_path)
    assert_same_gradients(config, tmp_path, model, *drawn_rows(config, IMAGE))
    proven(tmp_path, "train")


def test_keys_that_a_config_leaves_out_have_transformers_defaults() -> None:
    config = {"model_type": "blip-2"}
    ours = family_of_folder(config).from_hugging_face(config)
    theirs = transformers.Blip2Config(**json.loads(json.dumps(config)))
    assert image_tokens(ours) == theirs.num_query_tokens == 32
    assert (ours.encoder.width, ours.encoder.layers, ours.encoder.feed_forward_width) == (1408, 39, 6144)
    assert ours.decoder.width == theirs.text_config.hidden_size
    assert family_of_config(ours).name == "blip2(opt)"


def test_what_a_blip2_cannot_be_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    config = read_config(tmp_path)
    without_class_token = config.encoder.model_copy(update={"features": FeatureConfig(layer=-1, post_norm=True)})
    for change, message in [
        ({"connector": MLPConfig(depth=3)}, "connector of kind 'q_former'"),
        ({"encoder": without_class_token}, "BLIP-2 models have features"),
    ]:
        with pytest.raises(FamilyError, match=message):
            family_of_config(config.model_copy(update=change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qformer_config": {"use_qformer_text_input": True}}, "use_qformer_text_input is True"),
        ({"vision_config": {"qkv_bias": False}}, "qkv_bias is False"),
        ({"text_config": {"model_type": "t5"}}, "model_type is 't5'"),
    ],
)
def test_configs_that_cannot_be_carried_over_are_refused(change: dict[str, Any], message: str) -> None:
    config = {"model_type": "blip-2", "text_config": {"model_type": "llama"}} | change
    with pytest.raises(FamilyError, match=message):
        family_of_folder(config).from_hugging_face(config)
