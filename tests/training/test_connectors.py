"""Connectors under the real training step: sharded as alone, and nothing but what they add is changed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from data_pipelines.batch import Batch
from mllm_jax.models.connectors.choice import ConnectorConfig, instruction_tokens
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.perceiver import MediaProjectionConfig, PerceiverConfig
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig, VisualModuleConfig
from mllm_jax.models.connectors.q_former import QFormerConfig, QFormerTextConfig
from mllm_jax.models.connectors.visual_expert import VisualExpertConfig
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.parameters import abstract_parameters, logical_axes, make_model
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import batch_sharding, parameter_shardings, use_mesh
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective
from mllm_jax.training.rate_groups import Rates
from mllm_jax.training.state import abstract_state, create_state, merge, shardings_of
from mllm_jax.training.step import compile_train_step, make_train_step
from tests.support.tiny_training import MODEL, initial_parameters, tiny_batch

PERCEIVER = PerceiverConfig(latents=4, layers=2, heads=2, head_width=4, projection=False)
TEXT = QFormerTextConfig(vocab_size=16, max_positions=6, instruction_tokens=5)
CONNECTORS: dict[str, tuple[ConnectorConfig, tuple[str, ...]]] = {
    "q_former": (QFormerConfig(queries=4, width=8, layers=2, heads=2, feed_forward_width=12), ("connector/**",)),
    "projected": (
        PERCEIVER.model_copy(update={"media_projection": MediaProjectionConfig(feed_forward_width=12)}),
        ("connector/**",),
    ),
    "instructed_q_former": (
        QFormerConfig(
            queries=4, width=8, layers=2, heads=2, feed_forward_width=12, text=TEXT, stack=StackConfig(remat="full")
        ),
        ("connector/**",),
    ),
    "gated": (
        GatedCrossAttentionConfig(resampler=PERCEIVER, every=1, heads=2, head_width=4),
        ("connector/**", "decoder/cross_blocks/**"),
    ),
    "prefix": (
        PrefixAdapterConfig(
            length=3, layers=1, visual=VisualModuleConfig(width=8, layers=1, heads=2, feed_forward_width=12)
        ),
        ("connector/**", "decoder/prefix/**"),
    ),
    "expert": (VisualExpertConfig(), ("connector/**", "decoder/**/image_*/**")),
}
STEPS = 4


def schedule(step):
    return 0.05


RATES = Rates({"": schedule})


def trained(config: MultimodalConfig, trainable: tuple[str, ...]):
    """Losses of a few steps on one batch over eight devices, and the state before and after them."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    parameters, optimizer = abstract_parameters(config), optax.adam(schedule)
    shardings = parameter_shardings(logical_axes(config), parameters, mesh)
    abstract = abstract_state(parameters, shardings, trainable, jnp.float32, optimizer, mesh)
    state = create_state(initial_parameters(merge(abstract.trainable, abstract.frozen)), abstract, optimizer)
    before = jax.device_get((state.trainable, state.frozen))
    objective = next_token_objective(make_model(config), NextTokenConfig())
    losses = []
    with use_mesh(mesh):
        step = compile_train_step(
            make_train_step(objective, optimizer, RATES), shardings_of(abstract), batch_sharding(mesh)
        )
        batch = jax.device_put(batch_of(config), batch_sharding(mesh))
        for _ in range(STEPS):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, before, jax.device_get((state.trainable, state.frozen))


def batch_of(config: MultimodalConfig) -> Batch:
    """The tiny batch, with as many places for an image as the connector takes."""
    batch = tiny_batch(0)
    length = instruction_tokens(config.connector)
    shape = (*batch.image_mask.shape, length)
    asked = np.random.default_rng(1).integers(-1, 16, shape, np.int32) if length else None
    image_index = np.where(batch.image_index < image_tokens(config), batch.image_index, -1)
    return batch._replace(image_index=image_index, instructions=asked)


@pytest.mark.parametrize("name", CONNECTORS)
def test_only_what_the_connector_adds_is_trained(name: str) -> None:
    connector, trainable = CONNECTORS[name]
    config = MODEL.model_copy(update={"connector": connector})
    losses, before, after = trained(config, trainable)
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])
    moved = {path: np.abs(leaf - flatten_dict(before[0])[path]).max() for path, leaf in flatten_dict(after[0]).items()}
    # A key's bias moves all scores of a query alike, so that only rounding gives it a gradient.
    # And nothing reads what a Q-Former's last layer makes of its text.
    idle = {path for path in moved if path[-2:] == ("key", "bias") or "layer_1/text_feed" in "/".join(path)}
    unmoved = [path for path, change in moved.items() if change == 0 and path not in idle]
    assert not unmoved
    assert losses[-1] < losses[0]

    batch = jax.tree.map(jnp.asarray, batch_of(config))
    alone = jax.jit(next_token_objective(make_model(config), NextTokenConfig()))(merge(*before), batch)
    assert losses[0] == pytest.approx(float(alone) / float(batch.loss_weights.sum()), rel=1e-5)
