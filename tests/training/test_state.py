import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.models.parameters import abstract_parameters, logical_axes
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import parameter_shardings
from mllm_jax.training.optimizers import AdamWConfig, make_optimizer
from mllm_jax.training.patterns import PatternError
from mllm_jax.training.rate_groups import Rates
from mllm_jax.training.state import (
    FrozenChangedError,
    abstract_state,
    check_unchanged,
    create_state,
    fingerprint,
    merge,
    split,
)
from mllm_jax.training.summary import summarise, summary_table
from tests.support.tiny_training import MODEL, initial_parameters


@pytest.fixture(scope="module")
def planned():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    parameters = abstract_parameters(MODEL)
    optimizer = make_optimizer(AdamWConfig(), Rates({"": lambda step: 1e-3}), logical_axes(MODEL))
    shardings = parameter_shardings(logical_axes(MODEL), parameters, mesh)
    return optimizer, abstract_state(parameters, shardings, ("connector/**",), jnp.bfloat16, optimizer, mesh)


def test_every_parameter_is_in_one_of_the_two_trees():
    parameters = abstract_parameters(MODEL)
    trainable, frozen = split(parameters, ("connector/**", "decoder/*_norm/scale"))
    assert list(flatten_dict(trainable, sep="/")) == [
        "connector/layers_0/bias",
        "connector/layers_0/kernel",
        "connector/layers_1/bias",
        "connector/layers_1/kernel",
        "decoder/final_norm/scale",
    ]
    assert jax.tree.structure(merge(trainable, frozen)) == jax.tree.structure(parameters)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(PatternError, match="'projector/"):
        split(abstract_parameters(MODEL), ("projector/**",))


def test_optimizer_state_is_sharded_like_its_parameters_and_exists_for_the_trainable_alone(planned):
    optimizer, abstract = planned
    moments = abstract.optimizer_state[1][0].mu
    assert list(moments) == ["connector"]
    kernel = abstract.trainable["connector"]["layers_0"]["kernel"]
    assert moments["connector"]["layers_0"]["kernel"].sharding == kernel.sharding
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract.frozen)} == {jnp.dtype(jnp.bfloat16)}

    state = create_state(initial_parameters(merge(abstract.trainable, abstract.frozen)), abstract, optimizer)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), abstract)


def test_the_table_says_what_trains_and_what_it_takes(planned):
    optimizer, abstract = planned
    rows = summarise(abstract, optimizer)
    assert [(row.group, row.trains) for row in rows] == [("connector", True), ("decoder", False), ("encoder", False)]
    connector, decoder, _ = rows
    assert connector.parameters == 2 * (16 * 16 + 16)
    assert connector.parameter_bytes == 4 * connector.parameters
    # Two moments in f32, and the count of steps that Adam and its schedule keep.
    assert connector.optimizer_bytes == 8 * connector.parameters + 8
    assert decoder.parameter_bytes == 2 * decoder.parameters
    assert decoder.optimizer_bytes == 0
    assert summary_table(rows, "stage align").row_count == 4


def test_fingerprints_show_changed_and_swapped_elements():
    leaf = jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4)
    before = fingerprint({"a": {"b": leaf, "c": leaf}})
    check_unchanged(before, fingerprint({"a": {"b": leaf, "c": leaf}}))
    for changed in (leaf.at[1, 2].add(1), leaf.at[0].set(leaf[1]).at[1].set(leaf[0])):
        with pytest.raises(FrozenChangedError, match="changed by a training step: a/b"):
            check_unchanged(before, fingerprint({"a": {"b": changed, "c": leaf}}))
