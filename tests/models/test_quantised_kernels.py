"""Frozen kernels in eight and four bits: how far they are rounded, and models that compute with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.models.adapters import KERNEL, with_initial_adapters
from mllm_jax.models.layers.low_rank import LowRankConfig, adapted
from mllm_jax.models.layers.quantised import KERNEL_FORMATS, dequantised, quantised, stored_bytes
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.parameters import init_parameters, logical_axes, make_model
from mllm_jax.models.quantised_kernels import (
    STEPS,
    quantised_maps,
    scale_shape,
    with_abstract_scales,
    with_float_kernels,
    with_quantised_kernels,
)
from tests.support.tiny_training import MODEL, tiny_batch

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
SIZES = st.sampled_from([1, 2, 3, 5, 8])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(KERNEL_FORMATS)), st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3), st.data())
def test_no_number_is_off_by_more_than_half_a_step(name, axes, data):
    scales, shape = tuple(count for count, _ in axes), tuple(count * inside for count, inside in axes)
    spread = data.draw(st.sampled_from([0.0, 1e-6, 1.0, 3e4]))
    kernel = (np.random.default_rng(len(axes)).standard_normal(shape) * spread).astype(np.float32)
    values, scale = map(np.asarray, quantised(KERNEL_FORMATS[name], kernel, scales))
    whole = scale
    for axis, (_, inside) in enumerate(axes):
        whole = np.repeat(whole, inside, axis=axis)
    restored = np.asarray(dequantised(values, scale, jnp.float32))
    np.testing.assert_allclose(restored, values.astype(np.float32) * whole, rtol=1e-6)
    assert (np.abs(restored - kernel) <= whole * 0.5001).all()
    assert np.abs(values.astype(np.int32)).max() <= KERNEL_FORMATS[name].largest


def test_eight_bits_are_rounded_as_torch_rounds_them():
    kernel = np.random.default_rng(0).standard_normal((12, 7)).astype(np.float32)
    values, scale = quantised(KERNEL_FORMATS["int8"], kernel, (1, 7))
    steps, zeros = torch.tensor(np.asarray(scale[0])), torch.zeros(7, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(torch.tensor(kernel), steps, zeros, 1, -127, 127)
    np.testing.assert_allclose(dequantised(values, scale, jnp.float32), theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "axes", "expected"),
    [
        ("int8", (4, 256, 6, 32), ("layers", "embed", "heads", "head_width"), (4, 1, 6, 32)),
        ("int8", (6, 32, 256), ("heads", "head_width", "embed"), (1, 1, 256)),
        ("int4", (4, 256, 6, 32), ("layers", "embed", "heads", "head_width"), (4, 4, 6, 32)),
        ("int4", (6, 128, 256), ("heads", "head_width", "embed"), (6, 2, 256)),
        ("int4", (100, 256), ("feed_forward", "embed"), (1, 256)),
    ],
)
def test_where_the_steps_are(name, shape, axes, expected):
    found = scale_shape(KERNEL_FORMATS[name], shape, axes)
    assert found.shape == expected
    assert found.axes.count("groups") == (name == "int4" and axes[-1] != "embed")


def test_four_bits_are_half_a_byte():
    assert (stored_bytes((3, 5), jnp.int4), stored_bytes((3, 5), jnp.int8), stored_bytes((3, 5), jnp.bfloat16)) == (
        8,
        15,
        30,
    )


def model_of(scan):
    return MODEL.model_copy(
        update={
            part: getattr(MODEL, part).model_copy(update={"stack": StackConfig(scan=scan)})
            for part in ("encoder", "decoder")
        }
    )


def losses_and_gradients(model, adapters, trained, parameters):
    """Of a sum of squares of logits, by what trains."""
    batch = jax.tree.map(jnp.asarray, tiny_batch(0, rows=2))
    inputs = (batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index)

    @jax.jit
    def run(own, others):
        def loss(own):
            with adapted(adapters):
                logits = make_model(model).apply({"params": unflatten_dict(others | own, sep="/")}, *inputs)
            return jnp.mean(jnp.square(logits))

        return jax.value_and_grad(loss)(own)

    flat = flatten_dict(parameters, sep="/")
    own = {path: flat[path] for path in trained}
    return run(own, {path: leaf for path, leaf in flat.items() if path not in trained})


@pytest.mark.parametrize(("name", "scan", "decomposed"), [("int8", True, False), ("int4", False, True)])
def test_a_model_computes_with_them_what_it_computes_with_the_numbers_that_they_stand_for(name, scan, decomposed):
    model, kernel_format = model_of(scan), KERNEL_FORMATS[name]
    axes, plain = logical_axes(model), init_parameters(model, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=HERE), plain)
    abstract = flatten_dict(with_abstract_scales(kernel_format, shapes, axes)[0], sep="/")
    abstract = {path: leaf.update(sharding=HERE) for path, leaf in abstract.items()}
    kept = with_quantised_kernels(kernel_format, plain, unflatten_dict(abstract, sep="/"))
    maps = quantised_maps(kept)
    kernels = {path for path in flatten_dict(plain, sep="/") if path.endswith(KERNEL)}
    assert {path + KERNEL for path in maps} == kernels - {"decoder/output/kernel"}
    assert all(flatten_dict(kept, sep="/")[path + KERNEL].dtype == kernel_format.dtype for path in maps)

    config = LowRankConfig(targets=("**",), rank=2, decomposed=decomposed)
    adapters = dict.fromkeys((path for path in maps if path.startswith("decoder")), config)
    places = {
        f"{path}/adapter/{part}": HERE for path in adapters for part in ("down", "up", "magnitude")[: 2 + decomposed]
    }
    kept = with_initial_adapters(adapters, kept, axes, places, seed=0)
    restored = with_float_kernels(kept, jnp.float32)
    assert not quantised_maps(restored) and f"{min(maps)}{STEPS}" not in flatten_dict(restored, sep="/")

    trained = sorted(places)
    found, expected = (losses_and_gradients(model, adapters, trained, tree) for tree in (kept, restored))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for path in trained:
        np.testing.assert_allclose(found[1][path], expected[1][path], atol=1e-6, err_msg=path)
    assert any(np.abs(found[1][path]).max() > 1e-4 for path in trained)
