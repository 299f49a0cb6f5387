"""Splash attention, interpreted, beside the same attention by XLA over all pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models.layers.attention_kernels import AttentionConfig, attend
from mllm_jax.models.layers.masks import PackedMask, prompt_blocks
from mllm_jax.models.layers.splash import block_layout
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import use_mesh

SPLASH, XLA = AttentionConfig(kernel="splash", block_tokens=128), AttentionConfig(kernel="xla")

SEGMENTS = ([90, 41, 130], [1, 200, 3], [261], [50])
"""Lengths of the segments of each row; what is left of it is padding."""


def packed_rows(tokens: int) -> tuple[jax.Array, jax.Array]:
    """Segment ids, and which tokens are of answers: the last third of every segment."""
    ids, answers = np.zeros((2, tokens), np.int32), np.zeros((2, tokens), bool)
    for row in range(2):
        start = 0
        for number, length in enumerate(SEGMENTS[row]):
            ids[row, start : start + length] = number + 1
            answers[row, start + 2 * length // 3 : start + length] = True
            start += length
    return jnp.asarray(ids), jnp.asarray(answers)


def mask_of(tokens: int, kind: str) -> PackedMask | None:
    ids, answers = packed_rows(tokens)
    blocks = prompt_blocks(ids, answers) if "prefix" in kind else None
    window = jnp.int32(37) if "window" in kind else None
    return None if kind == "full" else PackedMask(ids, blocks, window)


def test_blocks_are_even_and_whole():
    assert block_layout(2048, 512) == (512, 2048)
    assert block_layout(577, 512) == (640, 640)
    assert block_layout(729, 512) == (768, 768)
    assert block_layout(3000, 512) == (512, 3072)
    assert block_layout(7, 512) == (128, 128)


@pytest.mark.parametrize(
    ("mesh", "kind"),
    [(MeshConfig(fsdp=2, tensor=2, sequence=2), "prefix and window"), (MeshConfig(sequence=4), "causal")],
)
def test_every_device_attends_for_its_rows_heads_and_queries(mesh, kind):
    tokens, made = 512, make_mesh(mesh)
    mask = jax.tree.map(lambda each: jnp.tile(each, (2, 1)) if each.ndim else each, mask_of(tokens, kind))
    query, key, value = (
        jax.random.normal(each, (4, tokens, heads, 16))
        for each, heads in zip(jax.random.split(jax.random.key(1), 3), (4, 2, 2), strict=True)
    )

    def loss(config, query, key, value):
        read = attend(query, key, value, mask, config=config) * (mask.segment_ids > 0)[:, :, None, None]
        return jnp.sum(read**2)

    with use_mesh(made):
        found = jax.jit(jax.value_and_grad(partial(loss, SPLASH), argnums=(0, 1, 2)))(query, key, value)
    expected = jax.value_and_grad(partial(loss, XLA), argnums=(0, 1, 2))(query, key, value)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(
    ("tokens", "kind", "heads", "kv_heads", "width", "soft_cap"),
    [
        (300, "causal", 9, 3, 64, None),
        (270, "prefix", 2, 1, 72, None),
        (270, "window", 2, 1, 32, 5.0),
        (300, "prefix and window", 2, 2, 128, None),
        (256, "causal", 1, 1, 16, 2.0),
        (197, "full", 3, 3, 24, None),
    ],
)
def test_splash_and_its_gradients_are_those_of_all_pairs(tokens, kind, heads, kv_heads, width, soft_cap):
    mask = mask_of(tokens, kind)
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, direction = (
        jax.random.normal(each, (2, tokens, count, width))
        for each, count in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
    )
    # Nothing reads what comes of padding.
    real = 1.0 if mask is None else (mask.segment_ids > 0)[:, :, None, None]

    def read(config, query, key, value):
        attended = attend(query, key, value, mask, soft_cap=soft_cap, config=config) * real
        return jnp.sum(attended * direction), attended

    both = [
        jax.value_and_grad(partial(read, config), argnums=(0, 1, 2), has_aux=True)(query, key, value)
        for config in (SPLASH, XLA)
    ]
    for found, expected in zip(jax.tree.leaves(both[0][0][1]), jax.tree.leaves(both[1][0][1]), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6)
    for found, expected in zip(both[0][1], both[1][1], strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-5)
