"""Models of tiled images: the count that packer and model share, the newline, and answers with a cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from data_pipelines.rendered import NEWLINE
from data_pipelines.transforms.anyres import AnyResConfig
from data_pipelines.transforms.tiling import image_layout
from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt, pad_prompts
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.connectors.perceiver import PerceiverConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens, slot_features, tile_features
from mllm_jax.models.parameters import abstract_parameters, logical_axes
from mllm_jax.models.presets import DECODERS, ENCODERS
from mllm_jax.models.vit import FeatureConfig, ViTConfig
from tests.support.parameters import drawn_parameters

CONFIG = MultimodalConfig(
    encoder=ViTConfig(image_size=(8, 12), patch_size=4, width=20, layers=2, heads=2, feed_forward_width=24),
    connector=MLPConfig(),
    decoder=DecoderConfig(
        vocab_size=40, width=18, layers=2, heads=3, kv_heads=1, head_width=6, feed_forward_width=20, max_positions=256
    ),
    tiling=AnyResConfig(grids=((1, 2), (2, 1), (2, 2))),
)
MODEL = Multimodal(CONFIG)
SIZES = ((9, 30), (25, 7), (40, 41), (8, 12))


@pytest.fixture(scope="module")
def parameters() -> dict:
    return drawn_parameters(CONFIG)


def drawn_prompt(seed: int, sizes: tuple[tuple[int, int], ...]) -> Prompt:
    """Words, then each image with a word behind it."""
    generator = np.random.default_rng(seed)
    layouts = tuple(image_layout(size, CONFIG.tiling, (8, 12), (2, 3)) for size in sizes)
    tokens, starts = list(generator.integers(0, 40, 2 + seed)), []
    for layout in layouts:
        starts.append(len(tokens))
        tokens += [39] * len(layout.index) + [int(generator.integers(0, 39))]
    pixels = tuple(generator.integers(0, 256, (layout.slots, 8, 12, 3), dtype=np.uint8) for layout in layouts)
    return Prompt(np.array(tokens, np.int32), tuple(starts), pixels, layouts)


def test_the_newline_is_a_parameter_of_the_connector_only_where_the_config_has_one():
    paths = {
        name: sorted(abstract_parameters(CONFIG.model_copy(update={"tiling": tiling}))["connector"])
        for name, tiling in (("none", None), ("tiled", CONFIG.tiling), ("bare", AnyResConfig(newline=False)))
    }
    assert paths["none"] == paths["bare"] == ["layers_0", "layers_1"]
    assert paths["tiled"] == ["layers_0", "layers_1", "newline"]
    assert abstract_parameters(CONFIG)["connector"]["newline"].shape == (18,)
    assert logical_axes(CONFIG)["connector"]["newline"] == ("embed",)


def test_an_image_takes_as_many_tokens_as_its_size_asks_for():
    large = MultimodalConfig(encoder=ENCODERS["clip_vit_l14_336"], decoder=DECODERS["vicuna_7b"], tiling=AnyResConfig())
    assert slot_features(large) == 576
    assert image_tokens(large, (672, 672)) == 2928
    assert image_tokens(large, (336, 1008)) == 576 + 3 * 576 + 24
    with pytest.raises(ValueError, match="depends on the image's size"):
        image_tokens(large)
    assert image_tokens(large.model_copy(update={"tiling": None}), (672, 672)) == 576


def test_features_and_newlines_land_where_the_layout_says(parameters: dict) -> None:
    batch, _ = pad_prompts([drawn_prompt(0, SIZES[:2]), drawn_prompt(1, SIZES[2:3])], 6, (8, 12), rows=2)

    def parts(module: Multimodal) -> tuple[jax.Array, jax.Array]:
        features = module.encode_images(jnp.asarray(batch.images), jnp.asarray(batch.image_mask))
        return features, module.embed(jnp.asarray(batch.tokens), features, jnp.asarray(batch.image_index))

    features, merged = jax.jit(partial(MODEL.apply, method=parts))({"params": parameters})
    first_slot, start = 0, 2
    for size in SIZES[:2]:
        layout = image_layout(size, CONFIG.tiling, (8, 12), (2, 3))
        flat = np.concatenate([features[0, first_slot : first_slot + layout.slots].reshape(-1, 18), [[0] * 18]])
        expected = np.where((layout.index == NEWLINE)[:, None], parameters["connector"]["newline"], flat[layout.index])
        np.testing.assert_array_equal(merged[0, start : start + len(layout.index)], expected)
        first_slot, start = first_slot + layout.slots, start + len(layout.index) + 1


def test_answers_about_tiled_images_are_those_of_reading_everything_again(parameters: dict) -> None:
    prompts = [drawn_prompt(0, SIZES[:2]), drawn_prompt(1, ()), drawn_prompt(2, SIZES[2:]), drawn_prompt(3, SIZES[3:])]
    answers = generate(MODEL, parameters, prompts, [], DecodingConfig(max_new_tokens=5, rows=4))
    answered = [
        Prompt(np.append(prompt.tokens, answer).astype(np.int32), prompt.image_starts, prompt.images, prompt.layouts)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    batch, lengths = pad_prompts(answered, slot_features(CONFIG), (8, 12), rows=4)
    inputs = (batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index)
    logits = jax.jit(MODEL.apply)({"params": parameters}, *map(jnp.asarray, inputs))
    best = np.asarray(logits.argmax(axis=-1))

    assert answers == [best[row, length - 6 : length - 1].tolist() for row, length in enumerate(lengths)]
    assert len({tuple(answer) for answer in answers}) > 1


def test_tiles_want_a_connector_that_keeps_the_patches_in_rows() -> None:
    keeps_class_token = CONFIG.encoder.model_copy(update={"features": FeatureConfig(keep_class_token=True)})
    assert tile_features(CONFIG) == (2, 3)
    for change in ({"encoder": keeps_class_token}, {"connector": PerceiverConfig(latents=5)}):
        with pytest.raises(ValidationError, match="tiles are merged row by row"):
            MultimodalConfig(**(dict(CONFIG) | change))
