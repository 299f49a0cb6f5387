import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mllm_jax.models.layers.experts import ExpertsConfig
from mllm_jax.models.parameters import abstract_parameters, logical_axes, make_model
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import batch_sharding, parameter_shardings, use_mesh
from mllm_jax.training.averages import AverageConfig
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective
from mllm_jax.training.rate_groups import Rates
from mllm_jax.training.state import abstract_state, create_state, merge, shardings_of
from mllm_jax.training.step import (
    PLAIN,
    StepOptions,
    batch_counts,
    compile_train_step,
    make_train_step,
    micro_batches,
)
from mllm_jax.training.weighting import weighted_by
from tests.support.tiny_training import MODEL, initial_parameters, tiny_batch

OBJECTIVE = next_token_objective(make_model(MODEL), NextTokenConfig())
TRAINABLE = ("connector/**", "decoder/**")


def schedule(step):
    return 1.0


RATES = Rates({"": schedule})


def one_step(mesh, objective=OBJECTIVE, options=PLAIN, trainable=TRAINABLE, batch=None, model=MODEL):
    """With plain SGD at rate 1, the change of the parameters is the gradient."""
    optimizer = optax.sgd(schedule)
    parameters = abstract_parameters(model)
    shardings = parameter_shardings(logical_axes(model), parameters, mesh)
    abstract = abstract_state(
        parameters, shardings, trainable, jnp.float32, optimizer, mesh, average=options.average is not None
    )
    state = create_state(initial_parameters(merge(abstract.trainable, abstract.frozen)), abstract, optimizer)
    before = jax.device_get(state.trainable)
    with use_mesh(mesh):
        step = make_train_step(objective, optimizer, RATES, options)
        compiled = compile_train_step(step, shardings_of(abstract), batch_sharding(mesh))
        placed = jax.device_put(batch or tiny_batch(0), batch_sharding(mesh))
        state, metrics = compiled(state, placed)
    gradients = jax.tree.map(lambda old, new: old - new, before, jax.device_get(state.trainable))
    return jax.device_get(metrics), gradients, state


@pytest.fixture(scope="module")
def alone():
    return one_step(make_mesh(MeshConfig(), jax.devices()[:1]))


def check_same(found, expected):
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], abs=1e-5)
    assert found[0]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[1], expected[1])


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=8),
        MeshConfig(data=1, fsdp=8),
        MeshConfig(data=1, fsdp=4, tensor=2),
        MeshConfig(data=2, fsdp=2, sequence=2),
    ],
    ids=str,
)
def test_loss_and_gradients_are_the_same_on_every_mesh(config, alone):
    check_same(one_step(make_mesh(config)), alone)


def test_a_mixture_of_experts_is_the_same_with_its_experts_apart():
    """The losses of its routers are part of it."""
    experts = ExpertsConfig(count=4, chosen=2, width=8)
    model = MODEL.model_copy(update={"decoder": MODEL.decoder.model_copy(update={"experts": experts})})
    objective = next_token_objective(make_model(model), NextTokenConfig(balance_weight=0.1, router_weight=0.01))
    alone = one_step(make_mesh(MeshConfig(), jax.devices()[:1]), objective, model=model)
    apart = one_step(make_mesh(MeshConfig(data=2, fsdp=2, expert=2)), objective, model=model)
    check_same(apart, alone)


def test_loss_and_gradients_do_not_depend_on_accumulation(alone):
    check_same(one_step(make_mesh(MeshConfig(), jax.devices()[:1]), options=StepOptions(accumulate=4)), alone)
    check_same(one_step(make_mesh(MeshConfig(data=2), jax.devices()[:2]), options=StepOptions(accumulate=2)), alone)


@pytest.mark.parametrize("config", [MeshConfig(data=1), MeshConfig(data=2, fsdp=2, sequence=2)], ids=str)
def test_chunked_logits_give_the_same_loss_and_gradients(config, alone):
    objective = next_token_objective(make_model(MODEL), NextTokenConfig(chunk_tokens=4))
    check_same(
        one_step(make_mesh(config, jax.devices()[: config.data * config.fsdp * config.sequence]), objective), alone
    )


@pytest.mark.parametrize("supervised", [(), (15,), (0, 5, 6, 7, 15)], ids=str)
def test_chunks_without_supervised_tokens_change_nothing(supervised):
    """One row has supervised tokens at these places, with a weight each; the others have none."""
    batch = tiny_batch(0)
    weights = np.zeros_like(batch.loss_weights)
    weights[3, list(supervised)] = np.arange(len(supervised)) / 2 + 0.5
    batch, mesh = batch._replace(loss_weights=weights), make_mesh(MeshConfig(), jax.devices()[:1])
    objective = next_token_objective(make_model(MODEL), NextTokenConfig(chunk_tokens=2))
    check_same(one_step(mesh, objective, batch=batch), one_step(mesh, batch=batch))


def test_the_loss_is_the_mean_over_supervised_tokens_of_the_global_batch(alone):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: leaf.update(sharding=here), abstract_parameters(MODEL))
    batch = jax.tree.map(jnp.asarray, tiny_batch(0))
    inputs = (batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index)
    logits = jax.jit(make_model(MODEL).apply)({"params": initial_parameters(abstract)}, *inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    assert alone[0]["loss"] == pytest.approx(float(losses[batch.loss_weights > 0].mean()), abs=1e-5)


def test_a_batch_without_supervision_has_no_loss_and_no_gradient():
    batch = tiny_batch(0)
    batch = batch._replace(loss_weights=np.zeros_like(batch.loss_weights))
    metrics, gradients, _ = one_step(make_mesh(MeshConfig(), jax.devices()[:1]), batch=batch)
    assert metrics["loss"] == 0.0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))


def test_frozen_parameters_get_no_gradient_and_keep_their_bits(alone):
    _, gradients, state = alone
    assert set(gradients) == {"connector", "decoder"}
    assert set(state.frozen) == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, state.frozen, initial_parameters(state.frozen))


def test_micro_batches_deal_the_rows_out():
    batch = tiny_batch(0)
    parts = micro_batches(batch, 2)
    np.testing.assert_array_equal(parts.tokens[1], batch.tokens[1::2])
    with pytest.raises(ValueError, match="8 rows cannot be cut into 3 equal parts"):
        micro_batches(batch, 3)


def test_counts_of_a_batch():
    counts = batch_counts(tiny_batch(0))
    assert int(counts["tokens"]) == 8 * 14
    assert int(counts["images"]) == 8
    # Segments of 8 and 6 tokens: 1 + 2 + ... + 8 and 1 + ... + 6 pairs.
    assert float(counts["attended"]) == 8 * (36 + 21)


@pytest.mark.parametrize("weighting", ["token", "square_root", "sample"])
def test_examples_count_by_their_length_not_at_all_or_halfway_between(weighting):
    """A packed batch weighs each of its segments as if it stood alone."""
    batch = tiny_batch(0)
    weighted = weighted_by(weighting, batch).loss_weights
    for row in range(8):
        for segment in (1, 2):
            here = batch.segment_ids[row] == segment
            count = batch.loss_weights[row, here].sum()
            expected = {"token": count, "square_root": math.sqrt(count), "sample": float(count > 0)}[weighting]
            assert float(weighted[row, here].sum()) == pytest.approx(expected, rel=1e-6)


def test_the_weighting_does_not_depend_on_mesh_and_accumulation():
    objective = next_token_objective(make_model(MODEL), NextTokenConfig(weighting="sample"))
    here = make_mesh(MeshConfig(), jax.devices()[:1])
    alone = one_step(here, objective)
    check_same(one_step(make_mesh(MeshConfig(data=2, fsdp=2, sequence=2)), objective), alone)
    check_same(one_step(here, objective, StepOptions(accumulate=4)), alone)


def test_the_average_follows_what_trains():
    options = StepOptions(average=AverageConfig(decay=0.05))
    state = one_step(make_mesh(MeshConfig(), jax.devices()[:1]), options=options)[2]
    start = initial_parameters(state.trainable)
    expected = jax.tree.map(lambda old, new: 0.05 * old + 0.95 * new, start, state.trainable)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.average, expected)
    assert state.result is state.average
