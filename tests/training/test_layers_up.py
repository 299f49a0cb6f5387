"""A pretrained encoder trained from one of its layers up: unscanned, every layer has a name of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.vit import FeatureConfig, ViT, ViTConfig
from mllm_jax.training.state import merge, split
from tests.support.parameters import drawn_parameters

CONFIG = ViTConfig(
    image_size=(8, 8),
    patch_size=4,
    width=8,
    layers=3,
    heads=2,
    feed_forward_width=12,
    features=FeatureConfig(layer=-1),
    stack=StackConfig(scan=False),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)


def test_patterns_train_the_upper_layers_alone() -> None:
    parameters = {"encoder": drawn_parameters(CONFIG)}
    trainable, frozen = split(parameters, ("encoder/blocks_[12]/**", "encoder/post_norm/**"))
    assert set(trainable["encoder"]) == {"blocks_1", "blocks_2", "post_norm"}
    assert {"blocks_0", "patch_embedding", "position_embedding", "class_token"} == set(frozen["encoder"])

    def loss(upper: dict) -> jax.Array:
        whole = merge(upper, frozen)["encoder"]
        return jnp.square(ViT(CONFIG).apply({"params": whole}, jnp.asarray(IMAGES))).mean()

    gradients = jax.jit(jax.grad(loss))(trainable)["encoder"]
    for path, leaf in jax.tree.leaves_with_path((gradients["blocks_1"], gradients["blocks_2"])):
        # A bias of the keys shifts all scores of a query alike, so that it has no gradient.
        assert [part.key for part in path[-2:]] == ["key", "bias"] or np.abs(leaf).max() > 0
