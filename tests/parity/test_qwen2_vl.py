"""Whole Qwen2-VL models against transformers: two images in a row of text, random weights, float32."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from data_pipelines.batch import Batch
from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    assert_close,
    assert_gradients_close,
    assert_loads_whole,
    drawn_images,
    image_places,
    read_config,
    read_parameters,
    write_folder,
)
from tests.support.proofs import Prover

IMAGE = 60
TOWER = {"depth": 2, "embed_dim": 24, "hidden_size": 48, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4}
TEXT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 3, 4], "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "wide": ((16, 32), {}),
    "tied, higher than wide": ((24, 8), {"tie_word_embeddings": True}),
    "larger squares, three frames": (
        (24, 12),
        {"vision_config": TOWER | {"spatial_merge_size": 3, "temporal_patch_size": 3}},
    ),
}


def make(folder: Path, name: str) -> torch.nn.Module:
    """A folder that says the size of its images."""
    size, changes = MODELS[name]
    config = transformers.Qwen2VLConfig(
        **{"vision_config": TOWER, "text_config": TEXT, "image_token_id": IMAGE, "video_token_id": 59} | changes
    )
    model = randomise(transformers.Qwen2VLForConditionalGeneration(config))
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written["vision_config"]["image_size"] = list(size)
    (folder / "config.json").write_text(json.dumps(written))
    return model


@pytest.fixture(scope="module", params=MODELS)
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("qwen")
    return folder, make(folder, request.param)


def drawn_inputs(config: MultimodalConfig) -> tuple[list[jax.Array], dict[str, torch.Tensor]]:
    index = image_places(config, rows=2)
    tokens = np.where(index < 0, np.random.default_rng(0).integers(0, 59, index.shape), IMAGE)
    pixels, normalised = drawn_images(config.encoder, 4)
    positions = np.broadcast_to(np.arange(index.shape[1]), index.shape)
    arrays = (
        tokens,
        np.ones_like(tokens),
        positions,
        pixels.reshape(2, 2, *pixels.shape[1:]),
        np.ones((2, 2), bool),
        index,
    )
    grid = torch.tensor([[1, *config.encoder.grid]] * 4)
    theirs = {
        "input_ids": torch.tensor(tokens),
        "mm_token_type_ids": torch.tensor(index >= 0).int(),
        "pixel_values": patches_of(config, normalised),
        "image_grid_thw": grid,
    }
    return [jnp.asarray(array) for array in arrays], theirs


def patches_of(config: MultimodalConfig, images: torch.Tensor) -> torch.Tensor:
    """Patches as their processor lays them out: square after square of those that are merged."""
    encoder, factor = config.encoder, config.connector.factor
    (rows, columns), size = encoder.grid, encoder.patch_size
    cut = images.reshape(-1, 3, rows // factor, factor, size, columns // factor, factor, size)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    return cut.expand(*cut.shape[:6], encoder.patch_frames, size, size).reshape(len(images) * rows * columns, -1)


@pytest.mark.parametrize("scan", [True, False])
def test_logits_and_exported_weights(
    qwen: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = qwen
    config = read_config(folder, scan)
    parameters = read_parameters(folder, config)
    ours, theirs = drawn_inputs(config)
    expected = model(**theirs).logits
    logits = jax.jit(Multimodal(config).apply)({"params": parameters}, *ours)
    proven(folder, "import", assert_close(logits, expected))
    exported = tmp_path / "exported"
    write_folder(exported, config, parameters, image_token_id=IMAGE)
    assert_loads_whole(transformers.AutoModelForImageTextToText, exported, model)
    assert read_config(exported, scan) == config
    proven(folder, "export")


def test_packed_segments_have_positions_of_their_own(tmp_path: Path) -> None:
    """Two conversations in one row give what each gives alone."""
    model = make(tmp_path, "wide")
    config = read_config(tmp_path)
    parameters = read_parameters(tmp_path, config)
    (tokens, ones, positions, images, mask, index), theirs = drawn_inputs(config)
    length = image_tokens(config)
    later = jnp.where(index[1] < 0, -1, index[1] + 2 * length)
    packed = [
        jnp.concatenate([tokens[0], tokens[1]])[None],
        jnp.concatenate([ones[0], 2 * ones[1]])[None],
        positions.reshape(1, -1),
        images.reshape(1, 4, *images.shape[2:]),
        mask.reshape(1, 4),
        jnp.concatenate([index[0], later])[None],
    ]
    found = jax.jit(Multimodal(config).apply)({"params": parameters}, *packed)
    assert_close(found.reshape(2, -1, found.shape[-1]), model(**theirs).logits)


def test_gradients_of_one_step(tmp_path: Path, proven: Prover) -> None:
    model = make(tmp_path, "wide")
    config = read_config(tmp_path)
    parameters = read_parameters(tmp_path, config)
    (tokens, segment_ids, positions, *images), theirs = drawn_inputs(config)
    targets, weights = jnp.roll(tokens, -1, axis=1), jnp.ones(tokens.shape).at[:, -1].set(0)
    batch = Batch(
        tokens, targets, weights / weights.sum(), segment_ids, positions, *images, jnp.zeros(tokens.shape, bool)
    )
    objective = next_token_objective(Multimodal(config), NextTokenConfig())
    value, gradients = jax.jit(jax.value_and_grad(objective))(parameters, batch)
    logits = model(**theirs).logits
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), theirs["input_ids"][:, 1:].flatten())
    wanted.backward()
    assert float(value) == pytest.approx(wanted.item(), rel=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    assert_gradients_close(gradients, read_parameters(tmp_path / "gradients", config))
    proven(tmp_path, "train")


def test_a_published_config() -> None:
    """The keys of Qwen2-VL-2B-Instruct, whose decoder's stand beside the tower's."""
    published = {
        "model_type": "qwen2_vl",
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "in_chans": 3, "patch_size": 14},
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "use_sliding_window": False,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    }
    config = family_of_folder(published).from_hugging_face(published)
    assert (config.decoder.rotary_sections, config.decoder.rope_theta) == ((16, 24, 24), 1e6)
    assert config.decoder.tied_embeddings and config.decoder.sliding_window is None
    assert (config.encoder.image_size, image_tokens(config)) == ((448, 448), 256)
    again = family_of_config(config)
    assert again.name == "qwen2_vl" and again.from_hugging_face(again.to_hugging_face(config)) == config


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("connector", {"norm": True}, "Qwen2-VL models have a connector of kind 'pixel_shuffle'"),
        ("encoder", {"positions": "learned"}, "Qwen2-VL models have positions = 'rotary'"),
        ("decoder", {"rotary_sections": None}, "Qwen2-VL models have decoder.rotary_sections"),
        ("decoder", {"attention_bias": False}, "Qwen2 models have attention_bias = True"),
    ],
)
def test_what_a_qwen2_vl_cannot_be_is_refused(part: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path, "wide")
    config = read_config(tmp_path)
    changed = config.model_copy(update={part: getattr(config, part).model_copy(update=change)})
    with pytest.raises(FamilyError, match=message):
        family_of_config(changed)


def test_sections_need_a_grid(tmp_path: Path) -> None:
    make(tmp_path, "wide")
    values = read_config(tmp_path).model_dump()
    with pytest.raises(ValueError, match="images whose tokens lie in rows and columns"):
        MultimodalConfig.model_validate(values | {"connector": {"kind": "perceiver", "heads": 3}})
    with pytest.raises(ValueError, match=r"rotary_sections \(1, 2, 3\) do not add up to the 8 pairs"):
        MultimodalConfig.model_validate(values | {"decoder": values["decoder"] | {"rotary_sections": (1, 2, 3)}})
    assert MultimodalConfig.model_validate(values).connector == PixelShuffleConfig(
        patch_norm=True, inner="features", norm_epsilon=1e-6
    )
