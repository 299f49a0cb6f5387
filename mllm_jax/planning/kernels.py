"""Operations of hand-written kernels, which the compiler's own cost does not see."""

import math
import re

from mllm_jax.planning.hlo_text import ArrayShape, Computation, Instruction, arrays_of

KERNEL_TARGET = "tpu_custom_call"
KERNEL_SHARE_OF_PEAK = 0.5
"""Of the peak FLOP/s that an attention kernel is taken to reach."""

_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
"""Matrix products of queries and keys, or as large, in each of splash attention's kernels."""


def kernel_name(kernel: Instruction) -> str:
    """What it is called in the program it comes from."""
    named = [part for part in kernel.operation.split("/") if "splash" in part or "flash" in part]
    return named[-1] if named else re.sub(r"[.\d]+$", "", kernel.name)


def kernel_flops(computation: Computation, kernel: Instruction) -> float | None:
    """What the kernel says itself (`cost_estimate`), or what splash attention does; None: nobody says it."""
    said = kernel.estimated("flops")
    if said:
        return float(said)
    name = kernel_name(kernel)
    if "splash" not in name:
        return None
    inputs = [next(arrays_of(computation[operand].shape), None) for operand in kernel.operands]
    arrays = [each for each in inputs if each is not None]
    # Queries are the largest input: [..., heads, tokens, width].
    floats = [each for each in arrays if each.dtype in ("bf16", "f32") and len(each.dimensions) >= 3]
    queries = max(floats, key=lambda each: each.elements)
    *heads, tokens, width = queries.dimensions
    products = next((count for part, count in _SPLASH_PRODUCTS.items() if part in name), 2)
    like_queries = [each for each in arrays_of(kernel.shape) if each.dimensions[-2:] == (tokens, width)]
    # The kernel of the gradients of keys and values may make those of the queries too.
    products += "dkv" in name and len(like_queries) > 2
    return 2.0 * products * math.prod(heads) * tokens**2 * width * _visited(arrays)


def _visited(arrays: list[ArrayShape]) -> float:
    """Share of the blocks of a causal mask that are not empty, by the kernel's table of them [heads, rows, columns]."""
    tables = [each.dimensions for each in arrays if each.dtype in ("s8", "s32") and len(each.dimensions) == 3]
    sides = [columns for _, rows, columns in tables if rows == columns and columns <= 256]
    return (sides[0] + 1) / (2 * sides[0]) if sides else 1.0
