"""Weights that connectors put into the decoder: closed gates hide them, and no token sees a wrong image."""

from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import jaxprs_in_params
from pydantic import ValidationError

from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt
from mllm_jax.models.connectors.choice import ConnectorConfig, is_merged
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.connectors.perceiver import PerceiverConfig
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig, VisualModuleConfig
from mllm_jax.models.connectors.visual_expert import VisualExpertConfig, copied_from
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.layers.media import latest_images
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.parameters import Parameters, abstract_parameters
from mllm_jax.models.vit import ViTConfig
from tests.support.parameters import drawn_parameters

PERCEIVER = PerceiverConfig(latents=3, layers=2, heads=2, head_width=6, projection=False)
CONNECTORS: dict[str, ConnectorConfig] = {
    "gated": GatedCrossAttentionConfig(resampler=PERCEIVER, every=2, first=1, heads=2, head_width=6),
    "prefix": PrefixAdapterConfig(
        length=3, layers=3, visual=VisualModuleConfig(width=12, layers=1, heads=2, feed_forward_width=14)
    ),
    "expert": VisualExpertConfig(projector=LinearConfig()),
}
SCANNED = StackConfig()
DECODER = DecoderConfig(
    vocab_size=40, width=18, layers=4, heads=3, kv_heads=1, head_width=6, feed_forward_width=20, max_positions=64
)
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (1, 4, 8, 8, 3), dtype=np.uint8)
TOKENS = GENERATOR.integers(0, 40, (1, 16)).astype(np.int32)
# Two segments of two images each, of one token; the first begins with text, the last four places are padding.
IMAGE_INDEX = np.full((1, 16), -1, np.int32)
IMAGE_INDEX[0, [2, 4, 6, 9]] = np.arange(4)
SEGMENT_IDS = np.repeat([1, 2, 0], [6, 6, 4])[None].astype(np.int32)
POSITIONS = np.concatenate([np.arange(6), np.arange(6), np.zeros(4, int)])[None].astype(np.int32)


def model_config(connector: ConnectorConfig, stack: StackConfig = SCANNED, layers: int = 4) -> MultimodalConfig:
    # One patch an image where every patch takes a token.
    patch = 8 if is_merged(connector) else 4
    tower = ViTConfig(image_size=(8, 8), patch_size=patch, width=20, layers=2, heads=2, feed_forward_width=24)
    decoder = DECODER.model_copy(update={"stack": stack, "layers": layers})
    return MultimodalConfig(encoder=tower, connector=connector, decoder=decoder)


CONFIGS = {name: model_config(connector) for name, connector in CONNECTORS.items()}
PARAMETERS = {name: drawn_parameters(config) for name, config in CONFIGS.items()}
every_connector = pytest.mark.parametrize("name", CONNECTORS)


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


def with_gates(parameters: Any, value: float) -> Any:
    def changed(path: tuple, leaf: jax.Array) -> jax.Array:
        return jnp.full_like(leaf, value) if path[-1].key.endswith(("_gate", "gates")) else leaf

    return jax.tree_util.tree_map_with_path(changed, parameters)


@pytest.mark.parametrize("name", ["gated", "prefix"])
@pytest.mark.parametrize("scan", [True, False])
def test_closed_gates_leave_the_language_model_as_it_is(name: str, scan: bool) -> None:
    config = model_config(CONNECTORS[name], StackConfig(scan=scan))
    parameters = with_gates(drawn_parameters(config), 0.0)

    def alone(module: Decoder) -> jax.Array:
        hidden, _ = module(module.embed(jnp.asarray(TOKENS)), jnp.asarray(SEGMENT_IDS), jnp.asarray(POSITIONS))
        return module.logits(hidden)

    own = abstract_parameters(config.decoder)
    text = {name: tree for name, tree in parameters["decoder"].items() if name in own}
    expected = jax.jit(partial(Decoder(config.decoder).apply, method=alone))({"params": text})
    np.testing.assert_allclose(logits(config, parameters, *row()), expected, atol=1e-6)
    opened = logits(config, with_gates(parameters, 0.7), *row())
    assert np.abs(opened[0, 2:] - expected[0, 2:]).max() > 1e-2


def test_an_expert_that_copies_the_language_model_is_the_language_model() -> None:
    config, parameters = CONFIGS["expert"], PARAMETERS["expert"]
    flat = flatten_dict(parameters)
    copied = unflatten_dict({path: flat[copied_from(path) or path] for path in flat})
    own = {path: leaf for path, leaf in flat.items() if copied_from(path) is None}
    plain = unflatten_dict({tuple(key for key in path if key != "projector"): leaf for path, leaf in own.items()})
    expected = logits(model_config(LinearConfig()), plain, *row())
    np.testing.assert_allclose(logits(config, copied, *row()), expected, atol=1e-5)
    assert np.abs(logits(config, parameters, *row()) - expected).max() > 1e-2


@every_connector
def test_scanned_blocks_compute_what_unrolled_ones_do(name: str) -> None:
    unrolled, parameters = model_config(CONNECTORS[name], StackConfig(scan=False)), PARAMETERS[name]
    stacks = {"blocks": 4, "cross_blocks": 2}
    decoder = {part: tree for part, tree in parameters["decoder"].items() if part not in stacks}
    for stack in stacks.keys() & parameters["decoder"].keys():
        for block in range(stacks[stack]):
            decoder[f"{stack}_{block}"] = jax.tree.map(itemgetter(block), parameters["decoder"][stack])
    other = logits(unrolled, {**parameters, "decoder": decoder}, *row())
    np.testing.assert_allclose(logits(CONFIGS[name], parameters, *row()), other, atol=1e-5)


@every_connector
def test_a_packed_segment_sees_its_own_images_alone(name: str) -> None:
    config, parameters = CONFIGS[name], PARAMETERS[name]
    assert image_tokens(config) == 1
    packed = logits(config, parameters, *row())
    first, second = row(slice(0, 6), slots=slice(0, 2)), row(slice(6, 12), slots=slice(2, 4))
    np.testing.assert_allclose(packed[:, :6], logits(config, parameters, *first), atol=1e-5)
    np.testing.assert_allclose(packed[:, 6:12], logits(config, parameters, *second), atol=1e-5)
    assert np.isfinite(packed).all()


def test_the_latest_image_is_the_one_at_or_before_a_token() -> None:
    latest = latest_images(jnp.asarray(IMAGE_INDEX), jnp.asarray(SEGMENT_IDS), 1)
    assert latest[0].tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, -1, -1, -1, -1]
    with_three_tokens = jnp.asarray([[-1, 3, 4, 5, -1, 0, 1, 2, -1]])
    assert latest_images(with_three_tokens, jnp.ones((1, 9), jnp.int32), 3)[0].tolist() == [-1, 1, 1, 1, 1, 0, 0, 0, 0]


@every_connector
def test_an_image_changes_tokens_from_its_place_on_and_none_of_another_segment(name: str) -> None:
    changed = IMAGES.copy()
    changed[0, 0] = 255 - changed[0, 0]
    before = logits(CONFIGS[name], PARAMETERS[name], *row())
    difference = np.abs(before - logits(CONFIGS[name], PARAMETERS[name], *row(images=changed)))[0].max(axis=-1)
    assert (difference[:2] == 0).all() and (difference[6:] == 0).all()
    assert difference[2:6].min() > 1e-5


@every_connector
def test_rows_without_image_slots_are_text(name: str) -> None:
    no_places = np.full((1, 16), -1, np.int32)
    with_slots = [*row()[:5], jnp.asarray(no_places)]
    without = [*row()[:3], jnp.asarray(IMAGES[:, :0]), jnp.ones((1, 0), bool), jnp.asarray(no_places)]
    expected = logits(CONFIGS[name], PARAMETERS[name], *with_slots)
    np.testing.assert_allclose(logits(CONFIGS[name], PARAMETERS[name], *without), expected, atol=1e-5)


@every_connector
def test_generation_with_a_cache_equals_the_whole_forward(name: str) -> None:
    """Prompts of different lengths, with no image, one and two."""
    config, parameters = CONFIGS[name], PARAMETERS[name]
    prompts = [
        Prompt(TOKENS[0, :3]),
        Prompt(TOKENS[0, :4], image_starts=(2,), images=(IMAGES[0, 0],)),
        Prompt(TOKENS[0, 4:12], image_starts=(1, 5), images=(IMAGES[0, 1], IMAGES[0, 2])),
    ]
    answers = generate(Multimodal(config), parameters, prompts, (), DecodingConfig(max_new_tokens=4, rows=3))
    for prompt, answer in zip(prompts, answers, strict=True):
        # All in one shape: what stands to the right of a token changes nothing of it.
        length = len(prompt.tokens) + len(answer)
        tokens, index = np.zeros((1, 16), np.int32), np.full((1, 16), -1, np.int32)
        tokens[0, :length] = np.concatenate([prompt.tokens, answer])
        index[0, list(prompt.image_starts)] = np.arange(len(prompt.images))
        images = np.zeros((1, 4, 8, 8, 3), np.uint8)
        images[0, : len(prompt.images)] = prompt.images if prompt.images else 0
        mask = np.arange(4)[None] < len(prompt.images)
        arrays = tokens, np.ones_like(tokens), np.arange(16)[None], images, mask, index
        whole = logits(config, parameters, *map(jnp.asarray, arrays))
        assert answer == np.argmax(whole[0, len(prompt.tokens) - 1 : length - 1], axis=-1).tolist()


@every_connector
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_program_does_not_grow_with_depth(name: str, remat: str) -> None:
    def size(layers: int) -> int:
        config = model_config(CONNECTORS[name], StackConfig(remat=remat), layers)

        def total(parameters: Parameters) -> jax.Array:
            return Multimodal(config).apply({"params": parameters}, *row()).sum()

        return equations(jax.make_jaxpr(jax.grad(total))(abstract_parameters(config)).jaxpr)

    assert size(4) == size(8)


def equations(jaxpr: Any) -> int:
    return sum(1 + sum(map(equations, jaxprs_in_params(each.params))) for each in jaxpr.eqns)


@pytest.mark.parametrize(
    ("connector", "message"),
    [
        (CONNECTORS["prefix"].model_copy(update={"layers": 5}), "connector.layers is 5, but the decoder has 4"),
        (CONNECTORS["gated"].model_copy(update={"first": 4}), "connector.first is 4, but the decoder has 4"),
    ],
)
def test_connectors_that_do_not_fit_the_decoder_are_refused(connector: ConnectorConfig, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model_config(connector)


def test_a_resampler_stays_at_the_encoders_width() -> None:
    with pytest.raises(ValidationError, match=r"resampler.projection must be false"):
        GatedCrossAttentionConfig(resampler=PerceiverConfig())
