"""Images take their places among the tokens, and only theirs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.parameters import make_model
from mllm_jax.models.vit import ViTConfig
from tests.support.parameters import drawn_parameters

CONFIG = MultimodalConfig(
    encoder=ViTConfig(image_size=(8, 12), patch_size=4, width=20, layers=2, heads=2, feed_forward_width=24),
    connector=MLPConfig(),
    decoder=DecoderConfig(vocab_size=40, width=18, layers=2, heads=3, kv_heads=1, head_width=6, feed_forward_width=20),
)
MODEL = Multimodal(CONFIG)
APPLY = jax.jit(MODEL.apply)
ENCODE = jax.jit(partial(MODEL.apply, method="encode_images"))
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (2, 2, 8, 12, 3), dtype=np.uint8)
TOKENS = GENERATOR.integers(0, 40, (2, 16)).astype(np.int32)


def inputs(image_index: np.ndarray, tokens: np.ndarray = TOKENS, images: np.ndarray = IMAGES) -> list[jax.Array]:
    segment_ids = np.ones((2, 16), np.int32)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (2, 16))
    arrays = tokens, segment_ids, positions, images, np.ones((2, 2), bool), image_index
    return [jnp.asarray(array) for array in arrays]


@pytest.fixture(scope="module")
def parameters() -> dict:
    return drawn_parameters(CONFIG)


@pytest.fixture(scope="module")
def image_index() -> np.ndarray:
    index = np.full((2, 16), -1, np.int32)
    index[0, 2:8] = np.arange(6)
    index[0, 9:15] = np.arange(6, 12)
    return index


def test_an_image_takes_as_many_tokens_as_the_connector_makes(parameters: dict) -> None:
    mask = jnp.ones((2, 2), bool)
    encoded = ENCODE({"params": parameters}, jnp.asarray(IMAGES), mask)
    assert encoded.shape == (2, 2, image_tokens(CONFIG), 18) == (2, 2, 6, 18)


def test_the_token_id_at_an_image_position_does_not_matter(parameters: dict, image_index: np.ndarray) -> None:
    expected = APPLY({"params": parameters}, *inputs(image_index))
    for image_token in (-200, 39, 32_000):
        tokens = np.where(image_index >= 0, image_token, TOKENS)
        np.testing.assert_array_equal(APPLY({"params": parameters}, *inputs(image_index, tokens)), expected)


def test_features_land_where_the_index_says(parameters: dict, image_index: np.ndarray) -> None:
    arrays = inputs(image_index)

    def embeddings(module: Multimodal) -> tuple[jax.Array, jax.Array, jax.Array]:
        features = module.encode_images(arrays[3], arrays[4])
        return features, module.embed(arrays[0], features, arrays[5]), module.decoder.embed(arrays[0])

    features, merged, text = jax.jit(partial(MODEL.apply, method=embeddings))({"params": parameters})
    np.testing.assert_array_equal(merged[0, 2:8], features[0, 0])
    np.testing.assert_array_equal(merged[0, 9:15], features[0, 1])
    outside = image_index < 0
    np.testing.assert_array_equal(merged[outside], text[outside])


def test_an_image_that_no_token_takes_changes_nothing(parameters: dict, image_index: np.ndarray) -> None:
    other = IMAGES.copy()
    other[1] = 255 - other[1]
    first = APPLY({"params": parameters}, *inputs(image_index))
    second = APPLY({"params": parameters}, *inputs(image_index, images=other))
    np.testing.assert_array_equal(first, second)
    other[0, 1] = 0
    third = APPLY({"params": parameters}, *inputs(image_index, images=other))
    np.testing.assert_array_equal(first[0, :9], third[0, :9])
    assert np.abs(first[0, 9:] - third[0, 9:]).max() > 1e-4


def test_empty_slots_encode_to_zeros(parameters: dict) -> None:
    mask = jnp.asarray([[True, False], [False, False]])
    encoded = ENCODE({"params": parameters}, jnp.asarray(IMAGES), mask)
    assert (np.asarray(encoded)[~np.asarray(mask)] == 0).all()


def test_rows_without_image_slots_are_text(parameters: dict) -> None:
    index = np.full((2, 16), -1, np.int32)
    with_slots = inputs(index)
    without = [*with_slots[:3], with_slots[3][:, :0], with_slots[4][:, :0], with_slots[5]]
    np.testing.assert_allclose(
        APPLY({"params": parameters}, *without), APPLY({"params": parameters}, *with_slots), atol=1e-6
    )


def test_wrong_shapes_are_named_at_trace_time(parameters: dict, image_index: np.ndarray) -> None:
    arrays = inputs(image_index)
    arrays[1] = arrays[1][:, :-1]
    with pytest.raises(Exception, match="segment_ids"):
        MODEL.apply({"params": parameters}, *arrays)


@pytest.mark.parametrize("connector", [LinearConfig(), LinearConfig(bias=False), MLPConfig(depth=3, bias=False)])
def test_connectors_map_every_patch_to_the_decoders_width(connector: LinearConfig | MLPConfig) -> None:
    config = CONFIG.model_copy(update={"connector": connector})
    abstract = jax.eval_shape(
        lambda parameters, images: make_model(config).apply(
            {"params": parameters}, images, jnp.ones((2, 2), bool), method="encode_images"
        ),
        drawn_parameters(config),
        IMAGES,
    )
    assert abstract.shape == (2, 2, image_tokens(config), 18)
