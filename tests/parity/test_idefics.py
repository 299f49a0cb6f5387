"""Whole Idefics models against transformers: interleaved images and text, random weights, float32."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    assert_close,
    assert_loads_whole,
    assert_same_gradients,
    drawn_images,
    read_config,
    read_parameters,
    write_folder,
)
from tests.support.proofs import Prover

TEXT = {
    "vocab_size": 57,
    "additional_vocab_size": 4,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-4,
}
TOWER = {
    "embed_dim": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 16,
    "patch_size": 8,
}
PERCEIVER = {"resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 2, "resampler_head_dim": 6}
MODELS: dict[str, dict[str, Any]] = {
    "resampler": {"cross_layer_interval": 2, "use_resampler": True},
    "all features": {"alpha_type": "vector", "qk_layer_norms": True},
}
# Interleaved: text before the first image, two images, and a row that ends in padding.
INDEX = np.full((2, 12), -1, np.int32)
INDEX[0, [2, 7]] = [0, 1]
INDEX[1, [0, 1]] = [0, 1]
LATEST = np.array([[-1] * 2 + [0] * 5 + [1] * 5, [0] + [1] * 11])
IMAGE = 60


def make(folder: Path, **changes: Any) -> torch.nn.Module:
    config = transformers.IdeficsConfig(
        **TEXT | changes, vision_config=TOWER, perceiver_config=PERCEIVER, tie_word_embeddings=False
    )
    model = randomise(transformers.IdeficsForVisionText2Text(config))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=MODELS)
def idefics(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("idefics")
    return folder, make(folder, **MODELS[request.param])


def drawn_inputs(config: MultimodalConfig) -> tuple[list[jax.Array], dict[str, torch.Tensor]]:
    tokens = np.where(INDEX < 0, np.random.default_rng(0).integers(0, IMAGE, INDEX.shape), IMAGE)
    pixels, normalised = drawn_images(config.encoder, 4)
    images = pixels.reshape(2, 2, *pixels.shape[1:])
    positions = np.broadcast_to(np.arange(INDEX.shape[1]), INDEX.shape)
    arrays = tokens, np.ones_like(tokens), positions, images, np.ones((2, 2), bool), INDEX
    theirs = {
        "input_ids": torch.tensor(tokens),
        "pixel_values": normalised.reshape(2, 2, *normalised.shape[1:]),
        "image_attention_mask": torch.tensor(LATEST[:, :, None] == np.arange(2)).long(),
    }
    return [jnp.asarray(array) for array in arrays], theirs


@pytest.mark.parametrize("scan", [True, False])
def test_logits_and_exported_weights(
    idefics: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    """The rows that they keep apart for added tokens are the last of ours, and are written with the others."""
    folder, model = idefics
    config = read_config(folder, scan)
    assert (image_tokens(config), config.decoder.vocab_size) == (1, 61)
    parameters = read_parameters(folder, config)
    ours, theirs = drawn_inputs(config)
    expected = model(**theirs).logits
    logits = jax.jit(Multimodal(config).apply)({"params": parameters}, *ours)
    proven(folder, "import", assert_close(logits, expected))

    exported = tmp_path / "exported"
    write_folder(exported, config, parameters)
    assert read_config(exported, scan) == config
    again = transformers.IdeficsForVisionText2Text.from_pretrained(exported)
    assert_close(again(**theirs).logits.detach(), expected)
    stored = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens", "lm_head"):
        other = f"{name}.additional_embedding" if name.endswith("tokens") else f"{name}.additional_fc"
        whole = torch.cat([stored.pop(f"{name}.weight"), stored.pop(f"{other}.weight")])
        stored[f"{name}.weight"] = whole
    save_file(stored, folder / "joined.safetensors")
    expected_model = transformers.IdeficsForVisionText2Text(again.config)
    expected_model.load_state_dict(stored)
    assert_loads_whole(transformers.IdeficsForVisionText2Text, exported, expected_model)
    proven(folder, "export")


def test_gradients_of_one_step(tmp_path: Path, proven: Prover) -> None:
    model = make(tmp_path, **MODELS["resampler"])
    config = read_config(tmp_path)
    assert_same_gradients(config, tmp_path, model, *drawn_inputs(config))
    proven(tmp_path, "train")


def test_keys_that_a_config_leaves_out_have_transformers_defaults() -> None:
    ours = family_of_folder({"model_type": "idefics"}).from_hugging_face({"model_type": "idefics"})
    theirs = transformers.IdeficsConfig()
    assert (ours.decoder.width, ours.decoder.norm_epsilon) == (theirs.hidden_size, theirs.rms_norm_eps)
    assert (ours.encoder.width, ours.encoder.layers) == (768, 32)
    assert ours.connector.resampler is None and ours.connector.every == 1


def test_what_an_idefics_cannot_be_is_refused(tmp_path: Path) -> None:
    make(tmp_path, **MODELS["resampler"])
    config = read_config(tmp_path)
    narrow = config.connector.resampler.model_copy(update={"activation": "gelu"})
    for change, message in [
        ({"first": 1}, "Idefics models have first = 0"),
        ({"feed_forward_width": 27}, "Idefics models have feed_forward_width = 28"),
        ({"resampler": narrow}, "Idefics models have resampler"),
        ({"every": 3}, "layers that connector.every divides"),
    ]:
        connector = config.connector.model_copy(update=change)
        with pytest.raises(FamilyError, match=message):
            family_of_config(config.model_copy(update={"connector": connector}))
