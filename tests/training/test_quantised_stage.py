"""Low-rank adapters on a frozen base in whole numbers: through a stage, a crash, the next stage, and loading."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.model_folder import load_model
from mllm_jax.models.adapters import KERNEL, linear_maps
from mllm_jax.models.layers.low_rank import LowRankConfig
from mllm_jax.models.layers.precision import PrecisionConfig
from mllm_jax.models.parameters import logical_axes
from mllm_jax.models.quantised_kernels import STEPS
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.plan import plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from tests.support.run_files import CutShortError, cut_short
from tests.support.small_tokenizers import small_tokenizer
from tests.support.tiny_training import MODEL, tiny_run, tiny_stages

INT8 = PrecisionConfig(frozen="int8", compute="float32")
EXACT = PrecisionConfig(compute="float32")
LORA = LowRankConfig(targets=("decoder/**/attention/*",), rank=2, decomposed=True)
QUERY = "decoder/blocks/attention/query"


def stages(count=1):
    """The connector and adapters of the decoder; then the decoder itself."""
    align, instruct = tiny_stages(steps=4)
    adapted = align.model_copy(update={"name": "adapted", "adapters": {"decoder": LORA}})
    return (adapted, instruct)[:count]


def run_in(folder, mesh=None, precision=INT8):
    run = tiny_run(folder, mesh or make_mesh(MeshConfig(), jax.devices()[:1]), precision)
    tokenizer = small_tokenizer("bpe", folder)
    described = {"model": ModelDescription(model=MODEL).model_dump(mode="json")}
    return replace(run, ingredients=replace(run.ingredients, run=described, tokenizer_files=tokenizer.files()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = run_in(tmp_path_factory.mktemp("quantised"))
    assert run_stages(stages(), run) is Outcome.FINISHED
    return run


def parameters_of(run):
    return flatten_dict(jax.device_get(load_model(run.folder).parameters), sep="/")


def test_the_table_says_what_the_base_takes(finished):
    (stage,), (plain,) = (
        plan_stages(stages(), finished),
        plan_stages(stages(), run_in(finished.folder, precision=EXACT)),
    )
    found, expected = ({(row.group, row.trains): row for row in each.summary()} for each in (stage, plain))
    assert {key: row.parameters for key, row in found.items()} == {key: row.parameters for key, row in expected.items()}
    assert found["encoder", False].parameter_bytes < 0.4 * expected["encoder", False].parameter_bytes
    assert found["decoder", True] == expected["decoder", True]


def test_what_is_loaded_is_what_was_trained_on(finished):
    """The base in steps of its whole numbers, with the adapters merged."""
    (stage,) = plan_stages(stages(), finished)
    begun = flatten_dict(first_parameters(stage, [], finished), sep="/")
    loaded = parameters_of(finished)
    assert loaded.keys() == flatten_dict(logical_axes(MODEL), sep="/").keys()
    for path in linear_maps(logical_axes(MODEL)) - stage.adapters.keys():
        if path.startswith("connector"):
            continue
        assert begun[path + KERNEL].dtype == jnp.int8
        expected = begun[path + KERNEL].astype(np.float32) * begun[path + STEPS]
        np.testing.assert_allclose(loaded[path + KERNEL], expected, rtol=1e-6, err_msg=path)
    base = begun[QUERY + KERNEL].astype(np.float32) * begun[QUERY + STEPS]
    assert 1e-4 < np.abs(loaded[QUERY + KERNEL] - base).max() < 1.0


def test_a_stage_that_trains_the_base_begins_from_its_own_numbers(finished):
    first, second = plan_stages(stages(2), finished)
    exact = run_in(finished.folder, precision=EXACT)
    expected = flatten_dict(first_parameters(plan_stages(stages(2), exact)[1], [first], exact), sep="/")
    found = flatten_dict(first_parameters(second, [first], finished), sep="/")
    for path in flatten_dict(second.abstract.trainable, sep="/"):
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def test_a_crashed_stage_ends_with_the_same_bits(finished, tmp_path):
    run = run_in(tmp_path)
    crashing = replace(run, ingredients=cut_short(run.ingredients, "adapted", 3))
    with pytest.raises(CutShortError):
        run_stages(stages(), crashing)
    assert run_stages(stages(), run) is Outcome.FINISHED
    expected = parameters_of(finished)
    for path, leaf in parameters_of(run).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_a_mesh_splits_the_whole_numbers_and_changes_nothing(finished, tmp_path):
    sharded = run_in(tmp_path, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    (stage,) = plan_stages(stages(), sharded)
    frozen = flatten_dict(stage.abstract.frozen, sep="/")
    assert tuple(frozen[QUERY + KERNEL].sharding.spec) == (None, "fsdp", "tensor", None)
    assert tuple(frozen[QUERY + STEPS].sharding.spec) == (None, None, "tensor", None)
    assert run_stages(stages(), sharded) is Outcome.FINISHED
    expected = parameters_of(finished)
    for path, leaf in parameters_of(sharded).items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-4, err_msg=path)
