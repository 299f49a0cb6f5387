"""What holds the memory: messages of the compiler read, loops of a program that was not compiled, whole parameters."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.planning.memory import Buffer, kept_between_passes, out_of_memory, replicated_parameters
from mllm_jax.training.state import TrainState

GIB = 2**30

SHORT = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (173.44G) exceeds "
    "available HBM (15.75G)."
)
LONG = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.25G of \
15.75G hbm. Exceeded hbm capacity by 1.50G.

Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_name="jit(train_step)/jvp(M)/decoder/blocks/attention/dot_general"
     Shape: f32[32,1,32,2048,2048]{4,3,2,1,0:T(8,128)}
     Unpadded size: 4.00G
     XLA label: fusion.1
     Allocation type: HLO temp
     ==========================

  2. Size: 512.00M
     Shape: bf16[32,2048,4096]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 512.00M
     ==========================
"""


def test_a_message_without_buffers():
    found = out_of_memory(SHORT)
    assert found is not None
    assert (found.needed, found.available, found.buffers) == (173.44 * GIB, 15.75 * GIB, ())


def test_a_message_with_buffers():
    found = out_of_memory(LONG)
    assert found is not None
    assert (found.needed, found.available) == (17.25 * GIB, 15.75 * GIB)
    assert found.buffers == (
        Buffer(4 * GIB, "f32[32,1,32,2048,2048]", "jit(train_step)/jvp(M)/decoder/blocks/attention/dot_general"),
        Buffer(GIB / 2, "bf16[32,2048,4096]", ""),
    )


def test_another_error_is_none_of_memory():
    assert out_of_memory("INTERNAL: something else") is None


def test_what_a_scanned_stack_keeps_for_its_backward_pass():
    def loss(x, weights):
        return jax.lax.scan(lambda y, w: (jnp.sin(y @ w), None), x, weights)[0].sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(jnp.zeros((24, 16)), jnp.zeros((5, 16, 16))).as_text()
    kept = kept_between_passes(text, {24}, ways=4)
    # The input of every layer, and the derivative of its sine.
    assert kept[-1].shape == "2 x f32[5, 24, 16]" and kept[-1].bytes == 2 * 5 * 24 * 16 * 4 / 4
    assert not [each for each in kept if "16, 16" in each.shape]


@pytest.mark.parametrize(("mesh", "named"), [(MeshConfig(fsdp=8, data=1), ["b", "a"]), (MeshConfig(data=8), [])])
def test_large_parameters_that_a_sharded_mesh_does_not_split_are_listed(mesh, named):
    devices = make_mesh(mesh, jax.devices()[:8])

    def leaf(rows: int, *axes):
        return jax.ShapeDtypeStruct((rows, 1000), jnp.float32, sharding=NamedSharding(devices, PartitionSpec(*axes)))

    small, step = leaf(10), leaf(1)
    state = TrainState(step, {"a": leaf(5000), "split": leaf(8000, "fsdp")}, {"b": leaf(6000), "small": small}, {})
    assert [each.path for each in replicated_parameters(state)] == named
