"""Whole Idefics2 models against transformers: two images in a row of text, random weights, float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.connectors.perceiver import MediaProjectionConfig
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
# 34 pixels hold four whole patches of 8: what is left over must be dropped on the same side.
TOWER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "image_size": 34,
    "patch_size": 8,
}
PERCEIVER = {
    "resampler_n_latents": 5,
    "resampler_depth": 2,
    "resampler_n_heads": 6,
    "resampler_head_dim": 10,
    "num_key_value_heads": 2,
}
MISTRAL = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "sliding_window": 7,
    "rms_norm_eps": 1e-3,
}
MODELS: dict[str, dict[str, Any]] = {
    "mistral with a window": {},
    # The resampler has its own epsilon only where it has the decoder's width.
    "tied llama": {
        "text_config": text_config(vocabulary=61),
        "tie_word_embeddings": True,
        "perceiver_config": PERCEIVER | {"hidden_size": 36, "rms_norm_eps": 1e-2, "num_key_value_heads": 6},
    },
}


def idefics2(**changes: Any) -> torch.nn.Module:
    options = {"vision_config": TOWER, "text_config": MISTRAL, "perceiver_config": PERCEIVER, "image_token_id": IMAGE}
    config = transformers.Idefics2Config(**options | changes)
    model = randomise(transformers.Idefics2ForConditionalGeneration(config))
    with torch.no_grad():
        for parameter in model.parameters():
            # At twice this, transformers' own logits in float32 are 4e-4 off those in float64.
            parameter.mul_(0.5 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture(scope="module", params=MODELS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("written")
    model = idefics2(**MODELS[request.param])
    model.save_pretrained(folder)
    return folder, model


def called(model: torch.nn.Module) -> Callable[..., Any]:
    """The model, given the pixels of two images a row one after the other."""
    return lambda input_ids, pixel_values: model(input_ids=input_ids, pixel_values=pixel_values.unflatten(0, (2, 2)))


@pytest.mark.parametrize("scan", [True, False])
def test_logits_and_exported_weights(
    written: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = written
    config = read_config(folder, scan)
    assert image_tokens(config) == 5
    parameters = read_parameters(folder, config)
    proven(folder, "import", assert_same_logits(config, parameters, called(model), IMAGE))
    exported = tmp_path / "exported"
    write_folder(exported, config, parameters, image_token_id=IMAGE)
    assert_loads_whole(transformers.AutoModelForImageTextToText, exported, model)
    assert read_config(exported, scan) == config
    proven(folder, "export")


def test_gradients_of_one_step(tmp_path: Path, proven: Prover) -> None:
    model = idefics2()
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    ours, theirs = drawn_rows(config, IMAGE)
    theirs["pixel_values"] = theirs["pixel_values"].unflatten(0, (2, 2))
    assert_same_gradients(config, tmp_path, model, ours, theirs)
    proven(tmp_path, "train")


def test_the_published_config() -> None:
    """Of HuggingFaceM4/idefics2-8b: the keys that differ from transformers' defaults."""
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    config = {
        "model_type": "idefics2",
        "vision_config": tower | {"image_size": 980, "patch_size": 14},
        "text_config": {"model_type": "mistral", "vocab_size": 32003, "max_position_embeddings": 32768},
    }
    ours = family_of_folder(config).from_hugging_face(config)
    assert (image_tokens(ours), ours.encoder.grid) == (64, (70, 70))
    assert ours.connector.media_projection == MediaProjectionConfig(feed_forward_width=14336)


def test_keys_that_a_config_leaves_out_have_transformers_defaults() -> None:
    ours = family_of_folder({"model_type": "idefics2"}).from_hugging_face({"model_type": "idefics2"})
    theirs = transformers.Idefics2Config()
    assert (ours.decoder.max_positions, ours.decoder.norm_epsilon) == (32768, theirs.text_config.rms_norm_eps)
    assert (ours.encoder.width, ours.encoder.patch_size) == (768, 32)
    assert (ours.connector.kv_heads, ours.connector.layers) == (4, 3)
    assert ours.connector.norm_epsilon == theirs.perceiver_config.rms_norm_eps


def test_what_an_idefics2_cannot_be_is_refused(tmp_path: Path) -> None:
    idefics2().save_pretrained(tmp_path)
    config = read_config(tmp_path)
    for change, message in [
        ({"media_projection": None}, "Idefics2 models have media_projection ="),
        ({"media_projection": MediaProjectionConfig(feed_forward_width=51)}, "Idefics2 models have media_projection ="),
        ({"projection": True}, "Idefics2 models have projection = False"),
        ({"norm": "layer"}, "Idefics2 models have norm = 'rms'"),
    ]:
        connector = config.connector.model_copy(update=change)
        with pytest.raises(FamilyError, match=message):
            family_of_config(config.model_copy(update={"connector": connector}))
    with pytest.raises(FamilyError, match="Idefics2 models have a connector of kind 'perceiver'"):
        family_of_config(config.model_copy(update={"connector": MLPConfig(depth=3)}))
    unnormed = config.encoder.model_copy(update={"features": FeatureConfig(layer=-1)})
    with pytest.raises(FamilyError, match="Idefics2 models have features ="):
        family_of_config(config.model_copy(update={"encoder": unnormed}))


def test_decoders_without_a_place_are_refused() -> None:
    text = {"model_type": "gpt2"}
    with pytest.raises(FamilyError, match="Idefics2 models have no decoder of family 'gpt2'"):
        family_of_folder({"model_type": "idefics2", "text_config": text})


@pytest.mark.parametrize("side", [20, 25])
def test_grids_whose_positions_transformers_rounds_are_refused(side: int) -> None:
    """Of 20 patches a side, some positions are used twice where torch makes 16 numbers at once, and not elsewhere."""
    config = {"model_type": "idefics2", "vision_config": {"image_size": 16 * side, "patch_size": 16}}
    with pytest.raises(FamilyError, match=f"Idefics2: transformers rounds the positions of {side} patches a side"):
        family_of_folder(config).from_hugging_face(config)
