"""Costs of programs that can be worked out by hand: written down as a TPU's compiler writes them, and compiled here."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.planning.chips import CHIPS
from mllm_jax.planning.links import Links
from mllm_jax.planning.program_cost import program_cost
from mllm_jax.planning.topology import Topology, parse_topology

V5E = CHIPS["v5e"]
RING = 32 * 2**20 * (1 - 1 / 8) / V5E.link_bytes_per_second
"""Seconds that 32 MiB gathered by 8 devices take, of which every one gets them by one link at a time."""


def on_a_line(text: str, mesh: dict[str, int]):
    """The cost of a program for 8 devices that all reach each other by one link."""
    topology = Topology("v5e:8", V5E, (8,))
    return program_cost(text, Links(topology, None), mesh)


SCHEDULE = """HloModule m, is_scheduled=true

%start (p: bf16[1024,2048]) -> (bf16[1024,2048], bf16[8192,2048]) {
  %p = bf16[1024,2048]{1,0} parameter(0)
  %gathered = bf16[8192,2048]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %begun = (bf16[1024,2048]{1,0}, bf16[8192,2048]{1,0}) custom-call(%gathered), \
custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[1024,2048]) -> bf16[8192,2048] {
  %p.1 = bf16[1024,2048]{1,0} parameter(0)
  %gathered.1 = bf16[8192,2048]{1,0} all-gather(%p.1), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %whole = bf16[8192,2048]{1,0} custom-call(%p.1, %gathered.1), custom_call_target="AsyncCollectiveDone"
}

%product (a: bf16[8192,2048]) -> bf16[8192,8192] {
  %a = bf16[8192,2048]{1,0} parameter(0)
  ROOT %dot = bf16[8192,8192]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}, \
metadata={op_name="jit(train_step)/jvp(M.decode)/decoder/up/dot_general"}
}

%body (b: (s32[], bf16[1024,2048], bf16[8192,2048])) -> (s32[], bf16[1024,2048], bf16[8192,2048]) {
  %b = (s32[], bf16[1024,2048], bf16[8192,2048]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %shard = bf16[1024,2048]{1,0} get-tuple-element(%b), index=1
  %x = bf16[8192,2048]{1,0} get-tuple-element(%b), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one), backend_config={"window_config":{"estimated_cycles":"0"}}
  %begin = (bf16[1024,2048]{1,0}, bf16[8192,2048]{1,0}) fusion(%shard), kind=kCustom, calls=%start
  %y = bf16[8192,8192]{1,0} fusion(%x), kind=kOutput, calls=%product, \
metadata={op_name="jit(train_step)/jvp(M.decode)/decoder/up/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"CYCLES"}}
  %end = bf16[8192,2048]{1,0} fusion(%shard), kind=kCustom, calls=%done
  ROOT %after = (s32[], bf16[1024,2048], bf16[8192,2048]) tuple(%next, %shard, %end)
}

%condition (c: (s32[], bf16[1024,2048], bf16[8192,2048])) -> pred[] {
  %c = (s32[], bf16[1024,2048], bf16[8192,2048]) parameter(0)
  %i.1 = s32[] get-tuple-element(%c), index=0
  %layers = s32[] constant(32)
  ROOT %less = pred[] compare(%i.1, %layers), direction=LT
}

ENTRY %main (s: bf16[1024,2048], x.1: bf16[8192,2048]) -> f32[16] {
  %s = bf16[1024,2048]{1,0} parameter(0)
  %x.1 = bf16[8192,2048]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %first = (s32[], bf16[1024,2048], bf16[8192,2048]) tuple(%zero, %s, %x.1)
  %loop = (s32[], bf16[1024,2048], bf16[8192,2048]) while(%first), condition=%condition, body=%body
  %last = bf16[8192,2048]{1,0} get-tuple-element(%loop), index=2
  %kernel = f32[16]{0} custom-call(%last), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(train_step)/jvp(M.decode)/decoder/flash_forward"}, \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"985000000000"}}}
  ROOT %sum = f32[16]{0} all-reduce(%kernel), channel_id=9, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}
"""
MESH = {"data": 4, "fsdp": 2}
STEP = """%step (a.2: bf16[8192,2048], p.2: bf16[1024,2048]) -> bf16[8192,8192] {
  %a.2 = bf16[8192,2048]{1,0} parameter(0)
  %p.2 = bf16[1024,2048]{1,0} parameter(1)
  %gathered.2 = bf16[8192,2048]{1,0} all-gather(%p.2), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %dot.2 = bf16[8192,8192]{1,0} dot(%a.2, %a.2), lhs_contracting_dims={1}, rhs_contracting_dims={1}, \
metadata={op_name="jit(train_step)/jvp(M.decode)/decoder/up/dot_general"}
}

"""


@pytest.mark.parametrize("beside_seconds", [0.4 * RING, 3 * RING])
def test_a_loop_hides_as_much_of_a_collective_as_it_computes_beside_it(beside_seconds):
    cost = on_a_line(SCHEDULE.replace("CYCLES", str(round(beside_seconds * V5E.clock))), MESH)
    gathered, reduced = cost.collectives["all-gather", "data+fsdp"], cost.collectives["all-reduce", "fsdp"]

    assert cost.compute["decoder"] == pytest.approx(32 * beside_seconds, rel=1e-4)
    assert (gathered.count, gathered.bytes, gathered.synchronous) == (32, 32 * 32 * 2**20, 0)
    assert gathered.seconds == pytest.approx(32 * RING)
    assert gathered.exposed == pytest.approx(32 * max(0.0, RING - beside_seconds), rel=1e-4, abs=1e-9)
    # Twice round half of 16 floats, with nothing beside it.
    assert (reduced.count, reduced.bytes, reduced.synchronous) == (1, 64, 1)
    assert reduced.seconds == pytest.approx(2 * 64 * 0.5 / V5E.link_bytes_per_second)
    assert reduced.exposed == pytest.approx(reduced.seconds, rel=1e-5)
    assert cost.seconds == pytest.approx(
        cost.compute["decoder"] + gathered.exposed + reduced.exposed + cost.kernels["flash_forward"]
    )


CARRIED = (
    SCHEDULE.replace("%start (p:", STEP + "%start (p:")
    .replace("  %begin = (bf16[1024,2048]{1,0}, bf16[8192,2048]{1,0}) fusion(%shard), kind=kCustom, calls=%start\n", "")
    .replace("  %end = bf16[8192,2048]{1,0} fusion(%shard), kind=kCustom, calls=%done\n", "")
    .replace("tuple(%next, %shard, %end)", "tuple(%next, %shard, %x)")
    .replace("fusion(%x), kind=kOutput, calls=%product", "fusion(%x, %shard), kind=kOutput, calls=%step")
    .replace(
        "  %first =", "  %begin = (bf16[1024,2048]{1,0}, bf16[8192,2048]{1,0}) fusion(%s), calls=%start\n  %first ="
    )
    .replace("  %last =", "  %end = bf16[8192,2048]{1,0} fusion(%s), kind=kCustom, calls=%done\n  %last =")
)


def test_a_collective_that_goes_on_beside_the_turns_of_a_loop_is_one_and_their_work_counts():
    """As XLA fuses it: begun before the loop, a step further in every turn, waited for behind it."""
    cost = on_a_line(CARRIED.replace("CYCLES", str(round(0.5 * RING * V5E.clock))), MESH)
    gathered = cost.collectives["all-gather", "data+fsdp"]
    assert (gathered.count, gathered.synchronous, gathered.exposed) == (1, 0, 0.0)
    assert cost.flops["decoder"] == 32 * 2 * 8192 * 8192 * 2048 + 985e9
    assert cost.compute["decoder"] == pytest.approx(16 * RING, rel=1e-4)


def test_operations_of_a_loop_and_of_a_kernel_that_says_its_own():
    cost = on_a_line(SCHEDULE.replace("CYCLES", "1000"), MESH)
    product = 2 * 8192 * 8192 * 2048
    assert cost.flops == {"decoder": 32 * product + 985e9}
    assert cost.kernel_flops == {"flash_forward": 985e9} and not cost.unknown_kernels and not cost.unknown_loops
    # 0.985 TFLOP at half of 197 TFLOP/s.
    assert cost.kernels["flash_forward"] == pytest.approx(0.01)


def test_a_kernel_of_which_nobody_says_what_it_does_is_named():
    cost = on_a_line(SCHEDULE.replace("CYCLES", "1000").replace('{"flops":"985000000000"}', "{}"), MESH)
    assert cost.unknown_kernels == {"flash_forward"}
    assert cost.kernels["flash_forward"] == pytest.approx((32 * 2**20 + 64) / V5E.memory_bytes_per_second)


def test_splash_attention_is_counted_by_its_shapes_and_the_blocks_of_its_mask():
    kernel = """ENTRY %main (t: s8[1,4,4], q: bf16[32,2048,128]) -> bf16[32,2048,128] {
  %t = s8[1,4,4]{2,1,0} parameter(0)
  %q = bf16[32,2048,128]{2,1,0} parameter(1)
  ROOT %splash_mha_KIND_segmented.1 = RESULT custom-call(%t, %q, %q, %q), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"use_fused_bwd_kernel\\": true}"
}}, metadata={op_name="jit(train_step)/decoder/blocks/attention/splash_mha_KIND_segmented"}
}
"""
    one_product = 2 * 32 * 2048**2 * 128
    causal = 10 / 16  # Of 4 x 4 blocks, those on and below the diagonal.
    heads = "bf16[32,2048,128]{2,1,0}"
    for kind, results, products in (("fwd", 1, 2), ("dq", 1, 3), ("dkv", 2, 4), ("dkv", 3, 5)):
        text = kernel.replace("KIND", kind).replace("RESULT", f"(f32[512,128]{{1,0}}, {', '.join([heads] * results)})")
        cost = on_a_line(text, MESH)
        assert cost.kernel_flops == {f"splash_mha_{kind}_segmented": products * one_product * causal}
        assert cost.flops["decoder"] == products * one_product * causal


def compiled_cost(function, *arguments, mesh):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return program_cost(text, Links(parse_topology(f"cpu:{mesh.size}"), None), mesh.shape)


def test_a_scan_of_products_compiled_here_counts_every_turn():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def layers(x, weights):
        return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, weights)[0]

    cost = compiled_cost(layers, jnp.zeros((16, 32)), jnp.zeros((7, 32, 32)), mesh=mesh)
    assert sum(cost.flops.values()) == 7 * 2 * 16 * 32 * 32
    gradient = compiled_cost(
        jax.grad(lambda x, weights: layers(x, weights).sum(), argnums=(0, 1)),
        jnp.zeros((16, 32)),
        jnp.zeros((7, 32, 32)),
        mesh=mesh,
    )
    assert sum(gradient.flops.values()) == 3 * 7 * 2 * 16 * 32 * 32
    again = compiled_cost(
        jax.value_and_grad(lambda x, weights: jax.checkpoint(layers)(x, weights).sum(), argnums=(0, 1)),
        jnp.zeros((16, 32)),
        jnp.zeros((7, 32, 32)),
        mesh=mesh,
    )
    assert sum(again.flops.values()) == 4 * 7 * 2 * 16 * 32 * 32 and again.again == 7 * 2 * 16 * 32 * 32


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_the_bytes_of_a_sum_over_an_axis_of_the_mesh_compiled_here(axis):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    split = NamedSharding(mesh, PartitionSpec(axis))
    x = jax.ShapeDtypeStruct((64, 48), jnp.float32, sharding=split)
    total = jax.shard_map(
        partial(jax.lax.psum, axis_name=axis), mesh=mesh, in_specs=split.spec, out_specs=PartitionSpec()
    )
    cost = compiled_cost(total, x, mesh=mesh)
    assert {key: (use.count, use.bytes) for key, use in cost.collectives.items()} == {
        ("all-reduce", axis): (1, 32 * 48 * 4)
    }
    gathered = compiled_cost(jax.jit(lambda x: x + 0, out_shardings=NamedSharding(mesh, PartitionSpec())), x, mesh=mesh)
    assert {key: (use.count, use.bytes) for key, use in gathered.collectives.items()} == {
        ("all-gather", axis): (1, 64 * 48 * 4)
    }
