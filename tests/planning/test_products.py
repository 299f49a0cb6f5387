"""FLOPs of products, against what counting by hand and other programs say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.planning.hlo_text import parse_program
from mllm_jax.planning.products import product_flops


def flops(text: str, name: str = "out") -> float:
    program = parse_program(text)
    main = program.computations[program.entry]
    return product_flops(main, main[name])


def test_a_product_with_a_batch():
    text = """HloModule m
ENTRY %main (a: f32[3,8,16], b: f32[3,16,32]) -> f32[3,8,32] {
  %a = f32[3,8,16]{2,1,0} parameter(0)
  %b = f32[3,16,32]{2,1,0} parameter(1)
  ROOT %out = f32[3,8,32]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, \
rhs_contracting_dims={1}
}
"""
    assert flops(text) == 2 * 3 * 8 * 16 * 32


CONVOLUTION = """HloModule m
ENTRY %main (a: f32[2,LENGTH,3], b: f32[SIZE,3,5]) -> f32[2,OUT,5] {
  %a = f32[2,LENGTH,3]{2,1,0} parameter(0)
  %b = f32[SIZE,3,5]{2,1,0} parameter(1)
  ROOT %out = f32[2,OUT,5]{2,1,0} convolution(%a, %b), window={size=SIZE stride=STRIDE pad=BEFORE_AFTER \
lhs_dilate=SPREAD rhs_dilate=SPACING}, dim_labels=b0f_0io->b0f
}
"""


@settings(deadline=None, max_examples=60)
@given(
    *(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(-1, 3), st.integers(0, 3)),
    *(st.integers(1, 3), st.integers(1, 3)),
)
def test_a_convolution_counts_what_meets_no_padding(length, size, stride, before, after, spread, spacing):
    spread_length = (length - 1) * spread + 1
    room = spread_length + before + after - ((size - 1) * spacing + 1)
    if room < 0:
        return
    windows = room // stride + 1
    met = sum(
        0 <= place < spread_length and place % spread == 0
        for window in range(windows)
        for tap in range(size)
        for place in [window * stride + tap * spacing - before]
    )
    names = {"LENGTH": length, "SIZE": size, "OUT": windows, "STRIDE": stride, "BEFORE": before, "AFTER": after}
    text = CONVOLUTION
    for name, value in (names | {"SPREAD": spread, "SPACING": spacing}).items():
        text = text.replace(name, str(value))
    assert flops(text) == 2 * met * 2 * 3 * 5


def test_images_cut_into_patches():
    images, kernel = jnp.zeros((2, 28, 28, 3)), jnp.zeros((14, 14, 3, 8))
    patches = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (14, 14), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    lowered = patches.lower(images, kernel)
    program = parse_program(lowered.as_text(dialect="hlo"))
    main = program.computations[program.entry]
    product = next(each for each in main.values() if each.opcode == "convolution")
    assert product_flops(main, product) == 2 * 2 * 2 * 2 * 14 * 14 * 3 * 8
    assert product_flops(main, product) == pytest.approx(np.float64(lowered.cost_analysis()["flops"]))
