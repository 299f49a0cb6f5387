"""Blocks that read images: nothing of them shows while their gates are closed, and no token sees a wrong image."""

from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.perceiver import PerceiverConfig
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.layers.media import latest_images
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig
from mllm_jax.models.parameters import Parameters, abstract_parameters
from mllm_jax.models.vit import ViTConfig
from tests.support.parameters import drawn_parameters

PERCEIVER = PerceiverConfig(latents=3, layers=2, heads=2, head_width=6, projection=False)
CONFIG = MultimodalConfig(
    encoder=ViTConfig(image_size=(8, 8), patch_size=4, width=20, layers=2, heads=2, feed_forward_width=24),
    connector=GatedCrossAttentionConfig(resampler=PERCEIVER, every=2, first=1, heads=2, head_width=6),
    decoder=DecoderConfig(vocab_size=40, width=18, layers=4, heads=3, kv_heads=1, head_width=6, feed_forward_width=20),
)
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (1, 4, 8, 8, 3), dtype=np.uint8)
TOKENS = GENERATOR.integers(0, 40, (1, 16)).astype(np.int32)
# Two segments of two images each; the first begins with text, the last four places are padding.
IMAGE_INDEX = np.full((1, 16), -1, np.int32)
IMAGE_INDEX[0, [2, 4, 6, 9]] = np.arange(4)
SEGMENT_IDS = np.repeat([1, 2, 0], [6, 6, 4])[None].astype(np.int32)
POSITIONS = np.concatenate([np.arange(6), np.arange(6), np.zeros(4, int)])[None].astype(np.int32)


@partial(jax.jit, static_argnums=0)
def logits(config: MultimodalConfig, parameters: Parameters, *arrays: jax.Array) -> jax.Array:
    return Multimodal(config).apply({"params": parameters}, *arrays)


def row(places: slice = slice(None), images: np.ndarray = IMAGES, slots: slice = slice(None)) -> list[jax.Array]:
    """A piece of the row as a row of its own, whose slots are counted from its first."""
    index = IMAGE_INDEX[:, places]
    moved = np.where(index < 0, -1, index - (slots.start or 0))
    mask = np.ones((1, images[:, slots].shape[1]), bool)
    arrays = TOKENS[:, places], SEGMENT_IDS[:, places], POSITIONS[:, places], images[:, slots], mask, moved
    return [jnp.asarray(array) for array in arrays]


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return drawn_parameters(CONFIG)


def with_gates(parameters: Any, value: float) -> Any:
    def changed(path: tuple, leaf: jax.Array) -> jax.Array:
        return jnp.full_like(leaf, value) if path[-1].key.endswith("_gate") else leaf

    return jax.tree_util.tree_map_with_path(changed, parameters)


@pytest.mark.parametrize("scan", [True, False])
def test_closed_gates_leave_the_language_model_as_it_is(scan: bool) -> None:
    stacked = {"stack": StackConfig(scan=scan)}
    config = CONFIG.model_copy(update={"decoder": CONFIG.decoder.model_copy(update=stacked)})
    parameters = with_gates(drawn_parameters(config), 0.0)

    def alone(module: Decoder) -> jax.Array:
        hidden, _ = module(module.embed(jnp.asarray(TOKENS)), jnp.asarray(SEGMENT_IDS), jnp.asarray(POSITIONS))
        return module.logits(hidden)

    own = abstract_parameters(config.decoder)
    text = {name: tree for name, tree in parameters["decoder"].items() if name in own}
    expected = jax.jit(partial(Decoder(config.decoder).apply, method=alone))({"params": text})
    np.testing.assert_allclose(logits(config, parameters, *row()), expected, atol=1e-6)
    opened = with_gates(parameters, 0.7)
    assert np.abs(logits(config, opened, *row())[0, 2:] - expected[0, 2:]).max() > 1e-2


def test_scanned_blocks_compute_what_unrolled_ones_do(parameters: Parameters) -> None:
    unrolled = CONFIG.decoder.model_copy(update={"stack": StackConfig(scan=False)})
    names = {"blocks": 4, "cross_blocks": 2}
    decoder = {name: tree for name, tree in parameters["decoder"].items() if name not in names}
    for name, count in names.items():
        for block in range(count):
            decoder[f"{name}_{block}"] = jax.tree.map(itemgetter(block), parameters["decoder"][name])
    other = logits(CONFIG.model_copy(update={"decoder": unrolled}), {**parameters, "decoder": decoder}, *row())
    np.testing.assert_allclose(logits(CONFIG, parameters, *row()), other, atol=1e-5)


def test_a_packed_segment_sees_its_own_images_alone(parameters: Parameters) -> None:
    packed = logits(CONFIG, parameters, *row())
    first, second = row(slice(0, 6), slots=slice(0, 2)), row(slice(6, 12), slots=slice(2, 4))
    np.testing.assert_allclose(packed[:, :6], logits(CONFIG, parameters, *first), atol=1e-5)
    np.testing.assert_allclose(packed[:, 6:12], logits(CONFIG, parameters, *second), atol=1e-5)
    assert np.isfinite(packed).all()


def test_the_latest_image_is_the_one_at_or_before_a_token() -> None:
    latest = latest_images(jnp.asarray(IMAGE_INDEX), jnp.asarray(SEGMENT_IDS), 1)
    assert latest[0].tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, -1, -1, -1, -1]
    with_three_tokens = jnp.asarray([[-1, 3, 4, 5, -1, 0, 1, 2, -1]])
    assert latest_images(with_three_tokens, jnp.ones((1, 9), jnp.int32), 3)[0].tolist() == [-1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_an_image_changes_the_tokens_from_its_place_to_the_next_image(parameters: Parameters) -> None:
    config = CONFIG.model_copy(update={"decoder": CONFIG.decoder.model_copy(update={"layers": 1})})
    changed = IMAGES.copy()
    changed[0, 0] = 255 - changed[0, 0]
    tree = drawn_parameters(config.model_copy(update={"connector": CONFIG.connector.model_copy(update={"first": 0})}))
    one_layer = config.model_copy(update={"connector": CONFIG.connector.model_copy(update={"first": 0})})
    # Of one layer, the block stands before self-attention: later tokens see the change through it.
    difference = np.abs(logits(one_layer, tree, *row()) - logits(one_layer, tree, *row(images=changed)))[0].max(axis=-1)
    assert (difference[:2] == 0).all() and (difference[6:] == 0).all()
    assert difference[2:6].min() > 1e-4


def test_rows_without_image_slots_run_the_blocks_on_nothing(parameters: Parameters) -> None:
    no_places = np.full((1, 16), -1, np.int32)
    with_slots = [*row()[:5], jnp.asarray(no_places)]
    without = [*row()[:3], jnp.asarray(IMAGES[:, :0]), jnp.ones((1, 0), bool), jnp.asarray(no_places)]
    np.testing.assert_allclose(logits(CONFIG, parameters, *without), logits(CONFIG, parameters, *with_slots), atol=1e-6)


def test_generation_with_a_cache_equals_the_whole_forward(parameters: Parameters) -> None:
    """Prompts of different lengths, with no image, one and two."""
    prompts = [
        Prompt(TOKENS[0, :3]),
        Prompt(TOKENS[0, :4], image_starts=(2,), images=(IMAGES[0, 0],)),
        Prompt(TOKENS[0, 4:12], image_starts=(1, 5), images=(IMAGES[0, 1], IMAGES[0, 2])),
    ]
    answers = generate(Multimodal(CONFIG), parameters, prompts, (), DecodingConfig(max_new_tokens=4, rows=3))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = np.concatenate([prompt.tokens, answer])[None]
        index = np.full(tokens.shape, -1, np.int32)
        index[0, list(prompt.image_starts)] = np.arange(len(prompt.images))
        images = np.stack(prompt.images)[None] if prompt.images else np.zeros((1, 0, 8, 8, 3), np.uint8)
        mask = np.ones((1, len(prompt.images)), bool)
        places = np.arange(tokens.shape[1])[None]
        arrays = tokens, np.ones_like(tokens), places, images, mask, index
        whole = logits(CONFIG, parameters, *map(jnp.asarray, arrays))
        assert answer == np.argmax(whole[0, len(prompt.tokens) - 1 : -1], axis=-1).tolist()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_program_does_not_grow_with_depth(remat: str) -> None:
    def size(layers: int) -> int:
        stack = StackConfig(remat=remat)
        decoder = CONFIG.decoder.model_copy(update={"layers": layers, "stack": stack})
        config = CONFIG.model_copy(update={"decoder": decoder})

        def total(parameters: Parameters) -> jax.Array:
            return Multimodal(config).apply({"params": parameters}, *row()).sum()

        return equations(jax.make_jaxpr(jax.grad(total))(abstract_parameters(config)).jaxpr)

    assert size(4) == size(8)


def equations(jaxpr: Any) -> int:
    return sum(1 + sum(map(equations, jax.core.jaxprs_in_params(each.params))) for each in jaxpr.eqns)
