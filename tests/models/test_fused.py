"""Encoders side by side: each sees the pixels for itself, and their features are one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from mllm_jax.interop.families.choice import family_of_config
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.fused import FusedConfig, FusedEncoder, encoder_parts
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.presets import ENCODERS
from mllm_jax.models.vit import FeatureConfig, ViT, ViTConfig
from mllm_jax.training.flops import step_cost
from tests.support.parameters import drawn_parameters

SHAPE = {"image_size": (16, 24), "patch_size": 8, "layers": 2, "feed_forward_width": 20}
FIRST = ViTConfig(**SHAPE, width=12, heads=3, layer_scale=True, registers=2, pixel_mean=(0.1, 0.2, 0.3))
SECOND = ViTConfig(**SHAPE, width=10, heads=2, class_token=False, features=FeatureConfig(layer=-1, post_norm=True))
FUSED = FusedConfig(parts=(FIRST, SECOND))
MODEL = MultimodalConfig(
    encoder=FUSED,
    decoder=DecoderConfig(vocab_size=40, width=18, layers=1, heads=3, kv_heads=1, head_width=6, feed_forward_width=20),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)


def test_features_are_those_of_the_parts_side_by_side() -> None:
    parameters = drawn_parameters(MODEL)["encoder"]
    fused = jax.jit(FusedEncoder(FUSED).apply)({"params": parameters}, IMAGES)
    parts = [
        jax.jit(ViT(part).apply)({"params": parameters[path[0]]}, IMAGES) for path, part in encoder_parts(FUSED).items()
    ]
    assert fused.shape == (2, FUSED.patches, FUSED.width) == (2, 6, 22)
    np.testing.assert_allclose(fused, np.concatenate(parts, axis=-1), atol=1e-5)


def test_a_model_with_two_encoders_counts_and_encodes_as_with_one() -> None:
    parameters = drawn_parameters(MODEL)
    assert image_tokens(MODEL) == 6
    assert parameters["connector"]["layers_0"]["kernel"].shape == (22, 18)
    encoded = jax.eval_shape(
        lambda tree: Multimodal(MODEL).apply(
            {"params": tree}, jnp.asarray(IMAGES)[None], jnp.ones((1, 2), bool), method="encode_images"
        ),
        parameters,
    )
    assert encoded.shape == (1, 2, 6, 18)


def test_a_step_costs_what_both_encoders_cost() -> None:
    def per_image(encoder: ViTConfig | FusedConfig) -> float:
        config = MODEL.model_copy(update={"encoder": encoder})
        parameters = drawn_parameters(config)
        connector = 2 * 6 * sum(layer["kernel"].size for layer in parameters["connector"].values())
        return step_cost(config, parameters, trainable=()).per_image - connector

    assert per_image(FUSED) == pytest.approx(per_image(FIRST) + per_image(SECOND))


def test_parts_must_cut_images_alike() -> None:
    for change, message in (
        ({"patch_size": 4}, r"parts\.1 has \(4, 6\) patches .* but parts\.0 has \(2, 3\)"),
        ({"image_size": (16, 16)}, r"parts\.1 has \(2, 2\) patches of images of \(16, 16\) pixels"),
    ):
        with pytest.raises(ValidationError, match=message):
            FusedConfig(parts=(FIRST, SECOND.model_copy(update=change)))
    kept = FIRST.model_copy(update={"features": FeatureConfig(keep_class_token=True)})
    with pytest.raises(ValidationError, match=r"parts\.0\.features\.keep_class_token is true"):
        FusedConfig(parts=(kept, SECOND))


def test_prismatic_takes_dinov2_and_siglip() -> None:
    """729 tokens of 1024 + 1152 channels at 384 pixels."""
    dino = ENCODERS["dinov2_large_registers"].model_copy(update={"image_size": (384, 384), "position_grid": (37, 37)})
    fused = FusedConfig(parts=(dino, ENCODERS["siglip_so400m_14_384"]))
    assert (fused.patches, fused.width) == (729, 2176)


def test_no_family_of_transformers_has_two_encoders() -> None:
    with pytest.raises(FamilyError, match="no model with two vision encoders side by side"):
        family_of_config(MODEL)
