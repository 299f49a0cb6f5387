"""Objectives on pairs: hard negatives, the same on every mesh, and what is refused before the first step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import ValidationError

from data_pipelines.batch import Batch
from data_pipelines.transforms.anyres import AnyResConfig
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig
from mllm_jax.models.connectors.q_former import QFormerTextConfig
from mllm_jax.models.fused import FusedConfig
from mllm_jax.models.layers.low_rank import LowRankConfig
from mllm_jax.models.parameters import abstract_parameters, logical_axes, make_model
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import batch_sharding, parameter_shardings, use_mesh
from mllm_jax.training.objective import Objective, StageModel
from mllm_jax.training.objectives.choice import make_objective
from mllm_jax.training.objectives.contrastive import ContrastiveObjectiveConfig
from mllm_jax.training.objectives.pairs import pairs_of
from mllm_jax.training.objectives.q_former import OwnTextConfig, QFormerObjectiveConfig
from mllm_jax.training.pair_losses import contrastive_loss, hard_negatives, kept_within, recalled, sigmoid_loss
from mllm_jax.training.plan import StageError, plan_stages
from mllm_jax.training.stages import StageConfig
from tests.support.pairs import LENGTH, WORDS, pair_batch, q_former_model
from tests.support.tiny_training import MODEL, initial_parameters, tiny_run, tiny_stages

OBJECTIVE = QFormerObjectiveConfig(
    kind="q_former",
    text=OwnTextConfig(tokenizer="", vocab_size=WORDS, max_positions=8),
    text_tokens=LENGTH,
    width=8,
)
CONFIG = q_former_model(scan=False, blocks=1)
OBJECTIVES = {
    "q_former": OBJECTIVE,
    "clip": ContrastiveObjectiveConfig(kind="contrastive", variant="clip", text_tokens=LENGTH, width=8),
    "siglip": ContrastiveObjectiveConfig(kind="contrastive", variant="siglip", text_tokens=LENGTH),
}
LEARNING = {"q_former": ("connector", "objective")} | dict.fromkeys(("clip", "siglip"), ("decoder", "objective"))
"""Parts whose gradients are compared."""
KEY = jax.random.key(3)


def staged(name: str = "q_former") -> tuple[Objective, Any, Any]:
    """The objective, and shapes and axes of all parameters."""
    shapes, axes = abstract_parameters(CONFIG), logical_axes(CONFIG)
    made = make_objective(StageModel(make_model(CONFIG), {}, shapes, axes, ()), OBJECTIVES[name])
    own = [
        unflatten_dict({f"objective/{path}": leaf for path, leaf in tree.items()}, sep="/")
        for tree in (made.own.shapes, made.own.axes)
    ]
    return made, {**shapes, **own[0]}, {**axes, **own[1]}


def on(mesh: Any, name: str, pairs: tuple[int, ...] = (15,)) -> list[tuple[dict[str, float], Any]]:
    """Losses of a batch of 16 slots with so many pairs and gradients of the mean, on a mesh; for each of `pairs`."""
    objective, shapes, axes = staged(name)
    shardings = parameter_shardings(axes, shapes, mesh)
    placed = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, shardings)
    parameters = initial_parameters(placed)
    for scalar, value in {"temperature": 0.2, "scale": 1.5, "bias": -1.0}.items():
        if scalar in parameters["objective"]:
            place = shardings["objective"][scalar]
            parameters["objective"][scalar] = jax.device_put(jnp.float32(value), place)
    learning = {part: parameters.pop(part) for part in LEARNING[name]}

    def loss(learning: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, Any]:
        losses = objective.losses({**frozen, **learning}, batch, KEY)
        return losses.total / jnp.maximum(objective.weight(batch), 1), {"total": losses.total, **losses.parts}

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    found = []
    with use_mesh(mesh):
        for count in pairs:
            batch = jax.device_put(pair_batch(0, rows=8, slots=2, pairs=count), batch_sharding(mesh))
            (_, parts), gradients = step(learning, parameters, batch)
            found.append(({part: float(value) for part, value in parts.items()}, jax.device_get(gradients)))
    return found


EIGHT, ALL = MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(("name", "meshes"), [("q_former", (EIGHT, ALL)), ("clip", (EIGHT,)), ("siglip", (ALL,))])
def test_losses_and_gradients_are_the_same_on_every_mesh(name: str, meshes: tuple[MeshConfig, ...]) -> None:
    """And every parameter that is read gets a gradient and no other, and none is lost where nothing is to compare."""
    (losses, gradients), nothing, single = on(make_mesh(MeshConfig(), jax.devices()[:1]), name, (15, 0, 1))
    for mesh in meshes:
        ((there, found),) = on(make_mesh(mesh), name)
        assert there == pytest.approx(losses, rel=1e-5, abs=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5), found, gradients)
    assert nothing[0]["total"] == 0
    for parts, tree in (nothing, single):
        assert np.isfinite(list(parts.values())).all() and all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)
        )
    objective, _, _ = staged(name)
    for path, leaf in flatten_dict(gradients, sep="/").items():
        # A key's bias moves all scores of a query alike, so that only rounding gives it a gradient.
        moved = path.endswith("key/bias") or bool(np.any(leaf))
        assert moved == (path.startswith("objective/") or objective.reads(path)), path
    assert set(objective.own.axes) == set(objective.own.shapes)


def test_negatives_are_drawn_by_likeness_and_are_never_the_positive() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((5, 5)), jnp.float32).at[0, 0].set(50.0)
    valid = jnp.asarray([True, True, True, False, True])
    keys = jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(lambda key: hard_negatives(key, logits, valid)))(keys)
    for found, by_row in ((drawn.texts, logits), (drawn.images, logits.T)):
        wrong = np.where(np.eye(5, dtype=bool) | ~np.asarray(valid), -np.inf, by_row)
        for row in (0, 1, 2, 4):
            shares = np.bincount(np.asarray(found[:, row]), minlength=5) / len(keys)
            expected = np.exp(wrong[row]) / np.exp(wrong[row]).sum()
            np.testing.assert_allclose(shares, expected, atol=0.03)
            assert shares[row] == shares[3] == 0
    again = hard_negatives(keys[0], logits, valid)
    np.testing.assert_array_equal(again.texts, drawn.texts[0])
    np.testing.assert_array_equal(again.images, drawn.images[0])
    assert (drawn.texts[0] != drawn.texts[1]).any() or (drawn.images[0] != drawn.images[1]).any()


def test_places_without_a_pair_change_nothing() -> None:
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((4, 4)), jnp.float32)
    padded = jnp.pad(logits, (0, 2), constant_values=9.0)
    valid = jnp.arange(6) < 4
    for smoothing in (0.0, 0.1):
        whole = contrastive_loss(logits, jnp.ones(4, bool), smoothing)
        np.testing.assert_allclose(contrastive_loss(padded, valid, smoothing), whole, rtol=1e-6)
    np.testing.assert_allclose(sigmoid_loss(padded, valid), sigmoid_loss(logits, jnp.ones(4, bool)), rtol=1e-6)
    assert recalled(padded, valid) == recalled(logits, jnp.ones(4, bool))


def test_a_learned_number_stays_in_its_bounds_and_comes_back() -> None:
    learn = jax.value_and_grad(lambda value, sign: sign * kept_within(value, -1.0, 2.0))
    for value, sign, expected in [
        (0.5, 1, (0.5, 1)),
        (2.5, -1, (-2, 0)),  # Descent would lead further up.
        (2.5, 1, (2, 1)),
        (-1.5, 1, (-1, 0)),
        (-1.5, -1, (1, -1)),
    ]:
        assert learn(value, sign) == expected


def test_the_texts_of_a_batch_stand_beside_their_images() -> None:
    batch = pair_batch(1, rows=2, slots=3)
    pairs = pairs_of(batch, LENGTH)
    for segment in (1, 2, 3):
        tokens = np.asarray(batch.tokens[1])[np.asarray(batch.segment_ids[1]) == segment]
        row = np.asarray(pairs.text[3 + segment - 1])
        assert row[: len(tokens)].tolist() == tokens.tolist() and (row[len(tokens) :] == -1).all()
    lost = batch._replace(image_mask=batch.image_mask.at[1, 0].set(False))
    assert pairs_of(lost, LENGTH).valid.tolist() == [True, True, True, False, True, True]


def stage(**changes: Any) -> StageConfig:
    values = tiny_stages()[0].model_dump() | {"objective": OBJECTIVE.model_dump(), "trainable": ("connector/**",)}
    return StageConfig.model_validate(values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, "accumulate: found 2, expected 1: each image is told from all others of the global batch"),
        ({"images_per_row": 0}, "images_per_row: 8 rows of 0 image slots hold no two pairs"),
        ({"images_per_row": 4}, "row_length: found 16, expected at least 24"),
        (
            {"objective": {"kind": "q_former"} | {f"{n}_weight": 0 for n in ("contrastive", "matching", "captioning")}},
            "are all 0: nothing is learned",
        ),
    ],
)
def test_stages_that_cannot_learn_from_pairs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        stage(**changes)


TEXT = QFormerTextConfig(vocab_size=WORDS, max_positions=5, instruction_tokens=5)
TILED = MODEL.model_copy(update={"tiling": AnyResConfig(grids=((1, 2),)), "connector": CONFIG.connector})


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (MODEL, {}, "objective.kind: 'q_former' trains a connector of kind 'q_former', but model.connector .* 'mlp'"),
        (TILED, {}, "objective.kind: 'q_former' reads images of one slot each; set model.tiling to null"),
        (q_former_model(TEXT), {}, "objective.text: .* but both have one"),
        (CONFIG, {"objective": {"kind": "q_former", "text_tokens": 6}}, "objective.text: .* but neither has one"),
        (
            q_former_model(TEXT),
            {"objective": {"kind": "q_former", "text_tokens": 6}},
            "objective.text_tokens: found 6, but the text side has positions for 5 tokens",
        ),
        (
            q_former_model(TEXT),
            {"objective": {"kind": "q_former", "text_tokens": 5, "begin_token": WORDS}},
            f"objective.begin_token: found {WORDS}, but the word embedding has {WORDS} rows",
        ),
        (CONFIG, {"trainable": ("decoder/**",)}, "trainable: decoder/.* chooses nothing that a loss .* depends on"),
        (
            CONFIG,
            {"adapters": {"a": LowRankConfig(targets=("decoder/**/query",)).model_dump()}},
            "adapters: decoder/.* has an adapter, but no loss of objective 'q_former' depends on it",
        ),
    ],
)
def test_models_that_cannot_learn_from_pairs_are_refused(
    model: Any, changes: dict[str, Any], message: str, tmp_path: Any
) -> None:
    with pytest.raises(StageError, match=f"stages.0 \\(align\\): {message}"):
        plan_stages([stage(**changes)], tiny_run(tmp_path, make_mesh(MeshConfig(), jax.devices()[:1]), model=model))


CONTRASTIVE = OBJECTIVES["clip"].model_dump()


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (TILED, {}, "objective.kind: 'contrastive' reads images of one slot each"),
        (MODEL, {"pooling": "class_token"}, "objective.pooling: found 'class_token', but the encoder has none"),
        (
            MODEL.model_copy(update={"encoder": FusedConfig(parts=(MODEL.encoder, MODEL.encoder))}),
            {},
            "objective.kind: 'contrastive' trains one encoder; leave model.encoder.fused_with empty",
        ),
        (
            MODEL.model_copy(update={"connector": PrefixAdapterConfig(length=3, layers=1)}),
            {},
            "objective.kind: 'contrastive' has texts read by a decoder without .* of kind 'prefix_adapter'",
        ),
        (
            MODEL.model_copy(
                update={"decoder": MODEL.decoder.model_copy(update={"positions": "learned", "max_positions": 4})}
            ),
            {},
            "objective.text_tokens: found 6, but the decoder has positions for 4 tokens",
        ),
    ],
)
def test_models_without_two_towers_are_refused(
    model: Any, changes: dict[str, Any], message: str, tmp_path: Any
) -> None:
    run = tiny_run(tmp_path, make_mesh(MeshConfig(), jax.devices()[:1]), model=model)
    with pytest.raises(StageError, match=message):
        plan_stages([stage(objective=CONTRASTIVE | changes, trainable=("encoder/**",))], run)


def test_what_no_loss_depends_on_does_not_train(tmp_path: Any) -> None:
    run = tiny_run(tmp_path, make_mesh(MeshConfig(), jax.devices()[:1]), model=CONFIG)
    (planned,) = plan_stages([stage()], run)
    trainable = flatten_dict(planned.abstract.trainable, sep="/")
    assert not [path for path in trainable if path.startswith(("connector/projection", "decoder", "encoder"))]
    assert {path for path in trainable if path.startswith("objective/")} == planned.objective.own.paths()
    assert "projection" in planned.abstract.frozen["connector"]
