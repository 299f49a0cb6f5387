"""LLaVA-NeXT against transformers: images of odd sizes as tiles, random weights, float32."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.tiling import image_layout
from mllm_jax.generation.prompts import Prompt, pad_prompts
from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, slot_features, tile_features
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    assert_close,
    assert_loads_whole,
    assert_same_gradients,
    read_config,
    read_parameters,
    write_folder,
)
from tests.support.proofs import Prover

IMAGE = 60
SIDE, PATCHES = 30, 3
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1))
TOWER = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": SIDE, "patch_size": 8}
TOWERS = {
    "clip": transformers.CLIPVisionConfig(**TOWER, intermediate_size=28),
    "siglip": transformers.SiglipVisionConfig(**TOWER, intermediate_size=28, vision_use_head=False),
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
SIZES = st.tuples(st.integers(1, 200), st.integers(1, 200))
MOST_SLOTS = 2 * (1 + 4)


def make(folder: Path, family: str = "clip", **changes: Any) -> torch.nn.Module:
    options = {
        "image_token_index": IMAGE,
        "image_grid_pinpoints": [[rows * SIDE, columns * SIDE] for rows, columns in GRIDS],
        "vision_feature_select_strategy": "full" if family == "siglip" else "default",
    }
    config = transformers.LlavaNextConfig(
        vision_config=TOWERS[family], text_config=transformers.LlamaConfig(**TEXT), **(options | changes)
    )
    model = randomise(transformers.LlavaNextForConditionalGeneration(config))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=TOWERS)
def llava_next(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, make(folder, request.param)


def drawn_prompt(config: MultimodalConfig, sizes: tuple[tuple[int, int], ...], seed: int = 0) -> Prompt:
    """Words, and images of these sizes among them."""
    generator = np.random.default_rng(seed)
    layouts = tuple(
        image_layout(size, config.tiling, config.encoder.image_size, tile_features(config)) for size in sizes
    )
    tokens, starts = list(generator.integers(0, IMAGE, 3)), []
    for layout in layouts:
        starts.append(len(tokens))
        tokens += [IMAGE] * len(layout.index) + list(generator.integers(0, IMAGE, 2))
    shape = config.encoder.image_size
    images = tuple(generator.integers(0, 256, (layout.slots, *shape, 3), dtype=np.uint8) for layout in layouts)
    return Prompt(np.array(tokens, np.int32), tuple(starts), images, layouts)


def their_inputs(config: MultimodalConfig, prompt: Prompt) -> dict[str, torch.Tensor]:
    """Their model pads images to the same number of tiles."""
    most = max(len(image) for image in prompt.images)
    padded = np.stack([np.pad(image, ((0, most - len(image)), (0, 0), (0, 0), (0, 0))) for image in prompt.images])
    normalised = (padded / 255.0 - np.array(config.encoder.pixel_mean)) / np.array(config.encoder.pixel_std)
    return {
        "input_ids": torch.tensor(prompt.tokens).long()[None],
        "pixel_values": torch.tensor(normalised.transpose(0, 1, 4, 2, 3), dtype=torch.float32),
        "image_sizes": torch.tensor([layout.size for layout in prompt.layouts]),
    }


def their_logits(config: MultimodalConfig, model: Any, prompt: Prompt) -> torch.Tensor:
    with torch.no_grad():
        return model(**their_inputs(config, prompt)).logits


class Ours:
    """Our model, compiled once for prompts of every size."""

    def __init__(self, config: MultimodalConfig, parameters: Any) -> None:
        self._config = config
        self._parameters = parameters
        self._apply = jax.jit(Multimodal(config).apply)

    def logits(self, prompt: Prompt) -> jax.Array:
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        fills = Prompt(np.zeros(192, np.int32), tuple(range(MOST_SLOTS)), (image,) * MOST_SLOTS)
        batch, _ = pad_prompts([prompt, fills], slot_features(self._config), (SIDE, SIDE), rows=2)
        arrays = batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index
        return self._apply({"params": self._parameters}, *map(jnp.asarray, arrays))[:1, : len(prompt.tokens)]


@pytest.fixture(scope="module")
def ours(llava_next: tuple[Path, Any]) -> Ours:
    config = read_config(llava_next[0])
    return Ours(config, read_parameters(llava_next[0], config))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(first=SIZES, second=SIZES)
@example(first=(60, 60), second=(17, 93))
@example(first=(1, 200), second=(61, 59))
def test_logits_with_images_of_any_size(llava_next: tuple[Path, Any], ours: Ours, first: Any, second: Any) -> None:
    config = read_config(llava_next[0])
    prompt = drawn_prompt(config, (first, second))
    assert_close(ours.logits(prompt), their_logits(config, llava_next[1], prompt))


def test_layers_that_are_not_scanned_give_the_same(llava_next: tuple[Path, Any], proven: Prover) -> None:
    config = read_config(llava_next[0], scan=False)
    prompt = drawn_prompt(config, ((33, 97),))
    unscanned = Ours(config, read_parameters(llava_next[0], config))
    difference = assert_close(unscanned.logits(prompt), their_logits(config, llava_next[1], prompt))
    proven(llava_next[0], "import", difference)


@pytest.mark.parametrize("scan", [True, False])
def test_exported_weights_are_the_imported_ones(
    llava_next: tuple[Path, Any], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = llava_next
    config = read_config(folder, scan)
    exported = tmp_path / "exported"
    write_folder(exported, config, read_parameters(folder, config), image_token_index=IMAGE)
    assert_loads_whole(transformers.LlavaNextForConditionalGeneration, exported, model)
    assert read_config(exported, scan) == config
    proven(folder, "export")


def test_gradients_of_one_step(tmp_path: Path, proven: Prover) -> None:
    """Through tiles, the padding that is cut off and the ends of their lines."""
    model = make(tmp_path)
    config = read_config(tmp_path)
    prompt = drawn_prompt(config, ((33, 97), (60, 20)))
    batch, _ = pad_prompts([prompt], slot_features(config), (SIDE, SIDE), rows=1)
    texts = [array[:, : len(prompt.tokens)] for array in (batch.tokens, batch.segment_ids, batch.positions)]
    arrays = *texts, batch.images, batch.image_mask, batch.image_index[:, : len(prompt.tokens)]
    assert_same_gradients(config, tmp_path, model, [*map(jnp.asarray, arrays)], their_inputs(config, prompt))
    proven(tmp_path, "train")


def test_the_tiling_is_that_of_the_config(llava_next: tuple[Path, Any]) -> None:
    assert read_config(llava_next[0]).tiling == AnyResConfig(grids=GRIDS)
    published = {
        "model_type": "llava_next",
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        "text_config": {"model_type": "llama"},
    }
    assert family_of_folder(published).from_hugging_face(published).tiling == AnyResConfig()


def test_what_a_llava_next_cannot_be_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    config = read_config(tmp_path)
    deep = config.connector.model_copy(update={"depth": 3})
    for change, message in [
        ({"tiling": config.tiling.model_copy(update={"unpad": False})}, "padding cut off"),
        ({"connector": deep}, "depth 2"),
        ({"connector": deep}, "llava: these models take an image as one whole"),
        ({"connector": deep, "tiling": None}, "llava_next: these models take an image as several tiles"),
    ]:
        with pytest.raises(FamilyError, match=message):
            family_of_config(config.model_copy(update=change))
    assert family_of_config(config).model_types == ("llava_next",)
    assert family_of_config(config.model_copy(update={"tiling": None})).model_types == ("llava",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_grid_pinpoints": [[60, 60], [60, 45]]},
            r"holds \[\[60, 45\]\] in config.json, which tiles of 30 x 30",
        ),
        ({"vision_feature_select_strategy": "full"}, "class token among the patches"),
    ],
)
def test_configs_that_cannot_be_carried_over_are_refused(change: dict[str, Any], message: str) -> None:
    config = {"model_type": "llava_next", "vision_config": TOWERS["clip"].to_dict(), "text_config": {}} | change
    with pytest.raises(FamilyError, match=message):
        family_of_folder(config).from_hugging_face(config)
