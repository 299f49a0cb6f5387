"""Low-rank adapters through stages, checkpoints and the loading of a model."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.checkpoint.reading import last_stored_step, read_trained
from mllm_jax.models.adapters import without_adapters
from mllm_jax.models.layers.low_rank import LowRankConfig
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.plan import StageError, plan_stages
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.stage_run import first_parameters
from tests.support.tiny_training import TinyFeed, tiny_run, tiny_stages

LORA = LowRankConfig(targets=("decoder/**/attention/*", "decoder/**/down"), rank=2, dropout=0.1)


def adapted_stages(**changes):
    """Align as always, then the connector and low-rank adapters of the decoder."""
    align, instruct = tiny_stages()
    return align, instruct.model_copy(
        update={"trainable": ("connector/**",), "adapters": {"decoder": LORA}, "validation": align.validation} | changes
    )


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def everything_left(run, stages):
    """What a stage after all of these begins with."""
    after = tiny_stages()[1].model_copy(update={"name": "after"})
    planned = plan_stages((*stages, after), run)
    return flatten_dict(jax.device_get(first_parameters(planned[-1], planned[:-1], run)), sep="/")


@pytest.fixture(scope="module")
def finished(one_device, tmp_path_factory):
    run = tiny_run(tmp_path_factory.mktemp("adapted"), one_device)
    assert run_stages(adapted_stages(), run) is Outcome.FINISHED
    return run


def test_what_trains_is_the_adapters_and_what_is_named(finished):
    stage = plan_stages(adapted_stages(), finished)[1]
    trainable = flatten_dict(stage.abstract.trainable, sep="/")
    adapters = {path for path in trainable if "/adapter/" in path}
    assert {path.split("/adapter/")[0].split("blocks/")[1] for path in adapters} == {
        *(f"attention/{name}" for name in ("query", "key", "value", "output")),
        "feed_forward/down",
    }
    assert all(path in adapters or path.startswith("connector/") for path in trainable)
    table = {(row.group, row.trains): row for row in stage.summary()}
    assert table["decoder", True].optimizer_bytes > 0 and table["decoder", False].optimizer_bytes == 0


def test_the_next_stage_begins_with_the_merged_weights(finished):
    stages = adapted_stages()
    align, instruct = plan_stages(stages, finished)
    begun = first_parameters(instruct, [align], finished)
    trained = flatten_dict(begun, sep="/") | flatten_dict(
        read_trained(last_stored_step(instruct.folder), instruct.abstract_parameters()), sep="/"
    )
    expected = without_adapters(instruct.adapters, unflatten_dict(trained, sep="/"), instruct.axes)
    left = everything_left(finished, stages)
    flat = flatten_dict(expected, sep="/")
    assert left.keys() == flat.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(left[path], leaf, err_msg=path)
    changed = "decoder/blocks/attention/query/kernel"
    assert not np.array_equal(left[changed], flatten_dict(begun, sep="/")[changed])


class CrashingFeed(TinyFeed):
    def __next__(self):
        loaded = super().__next__()
        if self._next == 6 and self._request.split == "train" and self._request.stage.name == "instruct":
            raise OSError("the disk is gone")
        return loaded


def test_a_crashed_stage_goes_on_with_the_same_dropout(finished, one_device, tmp_path):
    crashing = tiny_run(tmp_path, one_device, feed=CrashingFeed)
    with pytest.raises(OSError, match="the disk is gone"):
        run_stages(adapted_stages(), crashing)
    again = tiny_run(tmp_path, one_device)
    assert run_stages(adapted_stages(), again) is Outcome.FINISHED
    expected = everything_left(finished, adapted_stages())
    for path, leaf in everything_left(again, adapted_stages()).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_adapters_begin_the_same_on_every_mesh(finished, tmp_path):
    sharded = tiny_run(tmp_path, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    align, instruct = plan_stages(adapted_stages(), sharded)
    spec = flatten_dict(instruct.abstract.trainable, sep="/")[
        "decoder/blocks/attention/query/adapter/down"
    ].sharding.spec
    assert tuple(spec) == (None, "fsdp", None)
    run_stages(adapted_stages()[:1], sharded)
    found = flatten_dict(first_parameters(instruct, [align], sharded), sep="/")
    alone = plan_stages(adapted_stages(), finished)
    expected = flatten_dict(first_parameters(alone[1], alone[:1], finished), sep="/")
    for path in (path for path in expected if "/adapter/" in path):
        np.testing.assert_allclose(found[path], expected[path], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"adapters": {"all": LowRankConfig(targets=("decoder/**/atention/*",))}},
            r"adapters.all.targets: .*no parameter",
        ),
        ({"adapters": {"all": LowRankConfig(targets=("decoder/output",))}}, r"adapters.all.targets: "),
        ({"trainable": ("connector/**", "decoder/**")}, "has an adapter, but its kernel trains as well"),
    ],
)
def test_adapters_that_cannot_be_are_refused(changes, message, tmp_path, one_device):
    with pytest.raises(StageError, match=message):
        plan_stages(adapted_stages(**changes), tiny_run(tmp_path, one_device))
