"""What the encoder hands on, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.vit import FeatureConfig, ViT, ViTConfig
from tests.support.parameters import drawn_parameters

SHAPE = {"image_size": (20, 29), "patch_size": 8, "width": 24, "layers": 3, "heads": 3, "feed_forward_width": 40}
CONFIG = ViTConfig(**SHAPE)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 20, 29, 3), dtype=np.uint8)


def features(config: ViTConfig, parameters: dict, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.asarray(jax.jit(ViT(config).apply)({"params": parameters}, jnp.asarray(images)))


def with_features(config: ViTConfig, **features: object) -> ViTConfig:
    return config.model_copy(update={"features": FeatureConfig(**features)})


def test_an_image_gives_one_feature_a_whole_patch_and_one_for_a_kept_class_token() -> None:
    parameters = drawn_parameters(CONFIG)
    assert CONFIG.grid == (2, 3)
    dropped = features(CONFIG, parameters)
    kept_config = with_features(CONFIG, keep_class_token=True)
    kept = features(kept_config, parameters)
    assert dropped.shape == (2, CONFIG.patches, 24) == (2, 6, 24)
    assert kept.shape == (2, kept_config.patches, 24) == (2, 7, 24)
    np.testing.assert_allclose(kept[:, 1:], dropped, atol=1e-6)


def test_what_is_left_over_by_whole_patches_is_cut_off() -> None:
    parameters = drawn_parameters(CONFIG)
    changed = IMAGES.copy()
    changed[:, 16:], changed[:, :, 24:] = 0, 0
    np.testing.assert_array_equal(features(CONFIG, parameters), features(CONFIG, parameters, changed))


@pytest.mark.parametrize("scan", [True, False])
def test_blocks_after_the_feature_layer_have_parameters_but_are_not_executed(scan: bool) -> None:
    config = CONFIG.model_copy(update={"stack": StackConfig(scan=scan)})
    parameters = drawn_parameters(config)
    before = features(config, parameters)
    last = parameters["blocks"] if scan else parameters["blocks_2"]
    spoiled = jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan) if scan else leaf * jnp.nan, last)
    after = features(config, parameters | {"blocks" if scan else "blocks_2": spoiled})
    np.testing.assert_array_equal(before, after)


def test_scanned_unrolled_and_recomputed_stacks_are_one_function() -> None:
    scanned = drawn_parameters(CONFIG)
    blocks = scanned["blocks"]
    layers = {f"blocks_{layer}": jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks) for layer in range(3)}
    unrolled = {key: value for key, value in scanned.items() if key != "blocks"} | layers
    expected = features(CONFIG, scanned)
    for remat in ("none", "full", "dots"):
        config = CONFIG.model_copy(update={"stack": StackConfig(scan=False, remat=remat)})
        np.testing.assert_allclose(features(config, unrolled), expected, atol=1e-5)


def test_layer_zero_is_the_embeddings() -> None:
    config = with_features(CONFIG, layer=0)
    parameters = drawn_parameters(config)
    assert config.executed_layers == 0
    table = np.asarray(parameters["position_embedding"])[1:]
    pixels = (IMAGES[0, :8, :8] / 255.0 - 0.5) / 0.5
    kernel, bias = parameters["patch_embedding"]["kernel"], parameters["patch_embedding"]["bias"]
    expected = np.einsum("yxc,yxcd->d", pixels, kernel) + bias + table[0]
    np.testing.assert_allclose(features(config, parameters)[0, 0], expected, atol=1e-4)


def test_registers_change_the_features_but_are_not_among_them() -> None:
    config = CONFIG.model_copy(update={"registers": 2})
    parameters = drawn_parameters(config)
    before = features(config, parameters)
    after = features(config, parameters | {"registers": -parameters["registers"]})
    assert before.shape == (2, 6, 24)
    assert np.abs(before - after).max() > 1e-3


def test_compute_format_is_the_format_of_the_features() -> None:
    outputs = jax.eval_shape(ViT(CONFIG, dtype=jnp.bfloat16).apply, {"params": drawn_parameters(CONFIG)}, IMAGES)
    assert outputs.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width 24 is not a multiple of heads 5"),
        ({"patch_size": 21}, "holds no patch of 21 pixels"),
        ({"features": {"layer": -5}}, "features.layer -5 is not one of the 4 hidden states"),
        ({"class_token": False, "features": {"keep_class_token": True}}, "keep_class_token needs class_token"),
    ],
)
def test_contradictions_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViTConfig(**(SHAPE | change))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are \(16, 16\) pixels, but the encoder takes \(20, 29\)"):
        features(CONFIG, drawn_parameters(CONFIG), IMAGES[:, :16, :16])
