import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mllm_jax.models.layers.axes import ACTIVATION_AXES, PARAMETER_AXES
from mllm_jax.models.parameters import abstract_parameters, logical_axes
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import RULES, ShardingError, batch_sharding, parameter_shardings, row_ways, use_mesh
from tests.support.tiny_training import MODEL


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, jnp.float32)


def test_every_axis_name_of_the_models_has_a_rule():
    assert {*PARAMETER_AXES, *ACTIVATION_AXES} == {name for name, _ in RULES}


def test_every_parameter_of_a_model_is_placed():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shardings = parameter_shardings(logical_axes(MODEL), abstract_parameters(MODEL), mesh)
    blocks = shardings["decoder"]["blocks"]
    assert blocks["attention"]["query"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert blocks["feed_forward"]["down"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert shardings["decoder"]["token_embedding"]["embedding"].spec == PartitionSpec("tensor", "fsdp")


def test_axes_that_do_not_divide_are_collected_with_a_suggestion():
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    axes = {"key": {"kernel": ("embed", "kv_heads", "head_width")}, "output": {"kernel": ("embed", "vocabulary")}}
    shapes = {"key": {"kernel": shape(16, 3, 4)}, "output": {"kernel": shape(16, 1002)}}
    with pytest.raises(ShardingError) as error:
        parameter_shardings(axes, shapes, mesh)
    message = str(error.value)
    assert "2 parameters cannot be placed on the mesh (data 2, fsdp 1, sequence 1, tensor 4)" in message
    assert "key/kernel (16, 3, 4): axis 'kv_heads' of length 3 does not divide over tensor = 4; use tensor 1" in message
    assert "output/kernel (16, 1002): axis 'vocabulary' of length 1002" in message
    assert "use tensor 2, or pad the axis to 1004" in message


def test_a_mesh_axis_cannot_split_two_axes_of_one_array():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    with pytest.raises(ShardingError, match="'embed' and 'embed' would both be split over mesh axis 'fsdp'"):
        parameter_shardings({"kernel": ("embed", "embed")}, {"kernel": shape(8, 8)}, mesh)


def test_an_unknown_axis_and_missing_names_are_errors():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ShardingError, match="no rule for the logical axis 'width'"):
        parameter_shardings({"kernel": ("width",)}, {"kernel": shape(8)}, mesh)
    with pytest.raises(ShardingError, match=r"kernel .*: it has no logical axes"):
        parameter_shardings({}, {"kernel": shape(8)}, mesh)


def test_rows_are_split_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert row_ways(mesh) == 4


def test_a_logical_constraint_really_shards_an_activation():
    mesh = make_mesh(MeshConfig(data=4, tensor=2))

    @jax.jit
    def constrained(hidden):
        return nn.with_logical_constraint(2 * hidden, ("rows", "tokens", "feed_forward_activation"))

    with use_mesh(mesh):
        sharded = constrained(jnp.ones((8, 3, 4)))
    assert sharded.sharding.shard_shape(sharded.shape) == (2, 3, 2)
