"""Preference tuning through the training step: pairs, references, meshes, accumulation, packing."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.models.adapters import without_adapters
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.perceiver import PerceiverConfig
from mllm_jax.models.layers.low_rank import LowRankConfig
from mllm_jax.models.layers.precision import PrecisionConfig
from mllm_jax.models.multimodal import image_tokens
from mllm_jax.models.parameters import make_model
from mllm_jax.models.virtual_tokens import PrefixTuningConfig, without_virtual_tokens
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import batch_sharding, use_mesh
from mllm_jax.training.objectives.preference import PreferenceConfig, pair_count, pairs_of
from mllm_jax.training.objectives.preference_losses import compare
from mllm_jax.training.plan import plan_stages
from mllm_jax.training.stage_run import first_parameters
from mllm_jax.training.stages import StageConfig
from mllm_jax.training.state import create_state, merge, shardings_of
from mllm_jax.training.step import StepOptions, compile_train_step, make_evaluation_step, make_train_step
from tests.support.preference_batches import LEFT_OUT, ROW_LENGTH, SLOTS, batch_of, drawn_pairs, pair_batch
from tests.support.tiny_training import FLOAT32, MODEL, tiny_run, tiny_stages

LORA = {"all": LowRankConfig(targets=("decoder/**/attention/*",), rank=2, dropout=0.1)}
TRAINABLE = ("connector/**", "decoder/**")
RESAMPLER = PerceiverConfig(latents=4, layers=1, heads=2, head_width=4, projection=False)
CROSS_ATTENTION = MODEL.model_copy(
    update={"connector": GatedCrossAttentionConfig(resampler=RESAMPLER, every=1, heads=2, head_width=4)}
)
KTO = {"variant": {"kind": "kto", "beta": 0.5, "desirable_weight": 1.3}, "supervised_weight": 0.7}
DPO = {"variant": {"kind": "dpo", "beta": 0.5}}


@cache
def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def planned(tmp_path, objective, mesh=None, model=MODEL, precision=FLOAT32, **changes):
    """The plan of one stage of preference tuning, and its run."""
    values = {
        "objective": PreferenceConfig.model_validate(objective),
        "row_length": ROW_LENGTH,
        "images_per_row": SLOTS,
        "trainable": TRAINABLE,
    }
    stage = tiny_stages()[0].model_copy(update=values | changes)
    run = tiny_run(tmp_path, mesh or one_device(), precision, model=model)
    return plan_stages((stage,), run)[0], run


def begun(stage, run, optimizer, by):
    """The state as the stage begins, but for trainable parameters that have moved, each element by its own amount."""
    abstract = stage.abstract.replace(optimizer_state=jax.eval_shape(optimizer.init, stage.abstract.trainable))
    state = create_state(first_parameters(stage, (), run), abstract, optimizer)
    move = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf + by * jnp.sin(9 * leaf + 1), tree),
        out_shardings=shardings_of(abstract.trainable),
    )
    return state.replace(trainable=move(state.trainable)), abstract


def stepped(tmp_path, objective, batch=None, accumulate=1, by=0.1, **changes):
    """Metrics and gradients of one step of plain SGD at rate 1."""
    stage, run = planned(tmp_path, objective, **changes)
    optimizer = optax.sgd(1.0)
    with use_mesh(run.mesh):
        state, abstract = begun(stage, run, optimizer, by)
        before = jax.device_get(state.trainable)
        step = make_train_step(stage.objective, optimizer, stage.rates, StepOptions(accumulate))
        compiled = compile_train_step(step, shardings_of(abstract), batch_sharding(run.mesh))
        placed = jax.device_put(pair_batch() if batch is None else batch, batch_sharding(run.mesh))
        state, metrics = compiled(state, placed)
    gradients = jax.tree.map(lambda old, new: old - new, before, jax.device_get(state.trainable))
    return jax.device_get(metrics), gradients


def check_same(found, expected, by=1e-5):
    for name in (name for name in expected[0] if "reward" in name or name in ("loss", "chosen_log_probability")):
        assert found[0][name] == pytest.approx(expected[0][name], abs=by, rel=by), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=by, rtol=by), found[1], expected[1])


def segment_sums(model, parameters, batch):
    """From all logits at once: (row, segment) -> the summed log-probability of its supervised tokens."""
    names = ("tokens", "segment_ids", "positions", "images", "image_mask", "image_index")
    inputs = [jnp.asarray(getattr(batch, name)) for name in names]
    logits = jax.jit(make_model(model).apply)({"params": parameters}, *inputs)
    every = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch.targets[..., None], axis=-1)[..., 0]
    every = np.where(batch.loss_weights > 0, every, 0)
    return {
        (row, int(number)): every[row, batch.segment_ids[row] == number].sum()
        for row in range(len(every))
        for number in np.unique(batch.segment_ids[row])
        if number
    }


def scored(batch, sums):
    """The batch with what a model has made of its segments."""
    reference = np.zeros(batch.tokens.shape, np.float32)
    for (row, number), total in sums.items():
        reference[row, np.flatnonzero(batch.segment_ids[row] == number)[0]] = total
    return batch._replace(reference=reference)


STAGES = {
    "adapters": {"trainable": (), "adapters": LORA},
    "whole": {},
    "both": {"trainable": ("connector/**",), "adapters": LORA},
}


def test_a_stage_begins_undecided_and_learns(tmp_path):
    """What is frozen in bfloat16 makes no difference: the reference is as exact as what trains."""
    precision = PrecisionConfig(compute="float32", frozen="bfloat16")
    metrics, gradients = stepped(tmp_path, DPO, by=0, precision=precision, **STAGES["both"])
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["reward_margin"] == pytest.approx(0, abs=1e-5)
    norms = {path: np.abs(leaf).max() for path, leaf in flatten_dict(gradients, sep="/").items()}
    # What an adapter adds is 0 at first, so that only the half that makes it so has a gradient.
    idle = {path for path, norm in norms.items() if norm == 0}
    assert idle == {path for path in norms if path.endswith("adapter/down")}


@pytest.mark.parametrize("changes", STAGES.values(), ids=STAGES)
def test_rewards_are_what_separates_the_model_from_what_it_was(changes, tmp_path):
    """Against logits of all tokens of the plain model, with the adapters merged or as it was."""
    batch = pair_batch()
    stage, run = planned(tmp_path, DPO, **changes)
    state, _ = begun(stage, run, optax.sgd(1.0), 0.1)
    everything = merge(state.trainable, state.frozen)
    own = everything.pop("objective", {})
    assert set(flatten_dict(own.get("reference", {}), sep="/")) == {
        path for path in flatten_dict(state.trainable, sep="/") if "/adapter/" not in path
    }
    before = segment_sums(MODEL, merge(everything, own.get("reference", {})), batch)
    after = segment_sums(MODEL, without_adapters(stage.adapters, everything, stage.axes), batch)
    evaluate = jax.jit(make_evaluation_step(stage.validation_objective))
    undecided, weight = evaluate(begun(stage, run, optax.sgd(1.0), 0)[0], batch)
    assert float(weight) == 14 and float(undecided.total) == pytest.approx(14 * math.log(2), rel=1e-6)
    losses, _ = evaluate(state, batch)
    for name, first in (("chosen", 1), ("rejected", 0)):
        found = float(losses.parts[f"{name}_reward"])
        chosen = [key for key in before if key[1] % 2 == first]
        assert found == pytest.approx(0.5 * sum(after[key] - before[key] for key in chosen), abs=1e-4)
        assert abs(found) > 0.01
        total = sum(after[key] for key in chosen)
        assert float(losses.parts[f"{name}_log_probability"]) == pytest.approx(total, rel=1e-5)
    margins = [after[r, n] - before[r, n] - after[r, n + 1] + before[r, n + 1] for r, n in before if n % 2]
    assert float(losses.total) == pytest.approx(sum(math.log1p(math.exp(-0.5 * each)) for each in margins), abs=1e-4)
    assert float(losses.parts["reward_accuracy"]) == sum(each > 0 for each in margins)
    assert float(losses.parts["reward_margin"]) == pytest.approx(0.5 * sum(margins), abs=1e-4)


def test_the_reference_has_no_virtual_tokens(tmp_path):
    batch, soft = pair_batch(), PrefixTuningConfig(kind="prefix_tuning", count=3)
    stage, run = planned(tmp_path, DPO, trainable=(), adapters={"soft": soft})
    state, _ = begun(stage, run, optax.sgd(1.0), 0.1)
    assert not flatten_dict(state.frozen, sep="/").keys() & {"objective"}
    everything = merge(state.trainable, state.frozen)
    before, after = (segment_sums(MODEL, tree, batch) for tree in (without_virtual_tokens(everything), everything))
    losses, _ = jax.jit(make_evaluation_step(stage.validation_objective))(state, batch)
    expected = 0.5 * sum(after[key] - before[key] for key in before if key[1] % 2)
    assert float(losses.parts["chosen_reward"]) == pytest.approx(expected, abs=1e-4) and abs(expected) > 0.01


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return stepped(tmp_path_factory.mktemp("alone"), DPO)


@pytest.fixture(scope="module")
def kto_alone(tmp_path_factory):
    return stepped(tmp_path_factory.mktemp("kto"), KTO)


def test_a_mesh_changes_nothing(alone, tmp_path):
    check_same(stepped(tmp_path, DPO, mesh=make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))), alone)


def test_the_mean_over_the_batch_is_that_of_the_global_batch(kto_alone, tmp_path):
    check_same(stepped(tmp_path, KTO, mesh=make_mesh(MeshConfig(data=8))), kto_alone)


def test_accumulation_and_chunks_change_nothing(alone, tmp_path):
    check_same(stepped(tmp_path, DPO | {"chunk_tokens": 4}, accumulate=4), alone)


def test_packing_changes_nothing(kto_alone, tmp_path):
    packed = [pair for number, pair in enumerate(drawn_pairs(0, 16)) if number not in LEFT_OUT]
    check_same(stepped(tmp_path, KTO, batch_of([[pair] for pair in reversed(packed)])), kto_alone)


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto", "orpo", "simpo"])
def test_places_of_pairs_change_nothing(kind):
    """Whatever stands around a pair in its row, and in whichever row it stands."""
    pairs = drawn_pairs(3, 6, reference=True)
    variant = PreferenceConfig.model_validate({"variant": {"kind": kind}}).variant
    totals = []
    for rows in ([pairs[0:2], pairs[2:4], pairs[4:5], pairs[5:6]], [[pair] for pair in reversed(pairs)]):
        batch = batch_of(rows)
        policy = np.where(batch.loss_weights > 0, np.sin(batch.targets) - 1.5, 0).astype(np.float32)
        found = pairs_of(batch, jnp.asarray(policy), jnp.asarray(batch.reference))
        assert int(found.there.sum()) == float(pair_count(batch)) == 6
        totals.append(float(jnp.sum(jnp.where(found.there, compare(variant, found).losses, 0))))
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)


def with_own_slots(batch, image_tokens):
    """The batch with slots of their own for the segments of worse answers."""
    index = np.where((batch.preference < 0) & (batch.image_index >= 0), SLOTS * image_tokens, 0) + batch.image_index
    doubled = {name: np.concatenate([array, array], axis=1) for name, array in (
        ("images", batch.images), ("image_mask", batch.image_mask)
    )}  # fmt: skip
    return batch._replace(image_index=index.astype(np.int32), **doubled)


@pytest.mark.parametrize("model", [MODEL, CROSS_ATTENTION], ids=["merged", "cross_attention"])
def test_two_segments_see_the_image_that_they_share(model, tmp_path):
    stage, run = planned(tmp_path, DPO, model=model)
    state, _ = begun(stage, run, optax.sgd(1.0), 0.1)
    evaluate = jax.jit(make_evaluation_step(stage.validation_objective))
    tokens = image_tokens(model)
    blank = pair_batch(tokens)
    blank.images[:] = 128
    found, own, other = (
        evaluate(state, batch)[0] for batch in (pair_batch(tokens), with_own_slots(pair_batch(tokens), tokens), blank)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, own)
    for name in ("chosen_log_probability", "rejected_log_probability"):
        assert float(found.parts[name]) != pytest.approx(float(other.parts[name]), abs=1e-3)


def test_a_cached_reference_is_a_live_one(alone, tmp_path):
    batch, cached = pair_batch(), {"variant": DPO["variant"] | {"reference": "cached"}}
    stage, run = planned(tmp_path, cached)
    state, _ = begun(stage, run, optax.sgd(1.0), 0)
    assert "objective" not in state.frozen and stage.objective.again == frozenset()
    batch = scored(batch, segment_sums(MODEL, merge(state.trainable, state.frozen), batch))
    check_same(stepped(tmp_path, cached, batch), alone)


@pytest.mark.parametrize("kind", ["orpo", "simpo"])
def test_variants_without_a_reference_hold_none(kind, tmp_path):
    stage, _ = planned(tmp_path, {"variant": {"kind": kind}})
    assert not stage.objective.own.shapes and stage.objective.again == frozenset()


def test_what_runs_twice_is_counted(tmp_path):
    assert planned(tmp_path, DPO, trainable=(), adapters=LORA)[0].objective.again == {"decoder"}
    assert planned(tmp_path, DPO)[0].objective.again == {"encoder", "connector", "decoder"}


def test_a_mean_over_the_batch_forbids_its_parts():
    values = tiny_stages()[0].model_dump() | {"accumulate": 2, "objective": {"kind": "preference"}}
    assert StageConfig.model_validate(values).accumulate == 2
    with pytest.raises(ValueError, match="accumulate: found 2, expected 1"):
        StageConfig.model_validate(values | {"objective": {"kind": "preference", "variant": {"kind": "kto"}}})
