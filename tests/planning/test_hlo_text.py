"""Small programs as XLA writes them, read."""

import jax
import jax.numpy as jnp
import pytest

from mllm_jax.planning.hlo_text import ArrayShape, bits_of, bytes_of, parse_program, root_of

ON_A_TPU = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[8,128]{1,0:T(8,128)(2,1)})->bf16[8,128]{1,0}}

%fused (param_0: bf16[8,128], param_1: s32[]) -> (bf16[8,128], /*index=1*/f32[8]) {
  %param_0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %reduced = f32[8]{0:T(128)S(1)} custom-call(%param_0), custom_call_target="Sum", api_version=API_VERSION_ORIGINAL
  ROOT %tuple = (bf16[8,128]{1,0:T(8,128)(2,1)}, /*index=1*/f32[8]{0:T(128)S(1)}) tuple(%param_0, %reduced)
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %both = (bf16[8,128]{1,0:T(8,128)(2,1)}, f32[8]{0:T(128)S(1)}) fusion(%x, %three), kind=kLoop, calls=%fused, \
metadata={op_name="jit(step)/jvp(M)/decoder/mul" stack_frame_id=3}, backend_config={"window_config":\
{"estimated_cycles":"1500"}}
  ROOT %y = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%both), index=0
}
"""


def test_instructions_of_a_tpu_program():
    program = parse_program(ON_A_TPU)
    main, fused = program.computations[program.entry], program.computations["fused"]
    both = main["both"]

    assert (program.entry, list(main)) == ("main", ["x", "three", "both", "y"])
    assert both.opcode == "fusion" and both.operands == ("x", "three") and both.called("calls") == ("fused",)
    assert both.operation == "jit(step)/jvp(M)/decoder/mul"
    assert both.estimated("estimated_cycles") == 1500
    assert both.shape == (ArrayShape("bf16", (8, 128)), ArrayShape("f32", (8,), memory=1))
    assert bytes_of(both.shape) == 8 * 128 * 2 + 8 * 4 and bytes_of(both.shape, memory=0) == 8 * 128 * 2
    assert main["three"].literal == "3"
    assert root_of(fused).name == "tuple" and fused["reduced"].target == "Sum"


def test_what_a_kernel_says_of_itself_may_take_several_lines():
    broken = ON_A_TPU.replace(
        '"Sum", api', '"Sum", frontend_attributes={kernel_metadata={\n"block": 512,\n\n"other": 1\n}}, api'
    )
    program = parse_program(broken)
    assert program.computations["fused"]["reduced"].attributes.endswith("api_version=API_VERSION_ORIGINAL")
    assert list(program.computations["main"]) == ["x", "three", "both", "y"]


@pytest.mark.parametrize(("dtype", "bits"), [("pred", 8), ("bf16", 16), ("s4", 4), ("f8e4m3fn", 8), ("u32", 32)])
def test_widths_of_types(dtype, bits):
    assert bits_of(dtype) == bits


def test_every_instruction_of_a_compiled_program_is_read():
    text = jax.jit(lambda x: jax.lax.map(jnp.sort, x) @ x.T).lower(jnp.zeros((4, 4))).compile().as_text()
    program = parse_program(text)
    assert sum(len(each) for each in program.computations.values()) == text.count(" = ")


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse_program("nothing of the kind")
