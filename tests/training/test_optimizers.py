import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict
from optax.contrib import MuonDimensionNumbers

from mllm_jax.models.parameters import abstract_parameters, logical_axes
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import parameter_shardings, use_mesh
from mllm_jax.training.optimizers import (
    AdafactorConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    decay_mask,
    hidden_matrix,
    make_optimizer,
)
from mllm_jax.training.rate_groups import Rates
from mllm_jax.training.state import abstract_state, shardings_of
from tests.support.tiny_training import MODEL

AXES = {"kernel": ("layers", "embed", "feed_forward"), "bias": ("layers", "heads", "head_width")}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_adamw_is_torchs_with_decay_on_the_kernel_alone(clip_norm):
    random = np.random.default_rng(0)
    start = {name: random.standard_normal((2, 3, 4)).astype(np.float32) for name in AXES}
    steps = [{name: random.standard_normal((2, 3, 4)).astype(np.float32) for name in AXES} for _ in range(4)]
    rates = [0.0, 0.1, 0.05, 0.02]

    config = AdamWConfig(beta2=0.95, epsilon=1e-6, weight_decay=0.1, clip_norm=clip_norm)
    optimizer = make_optimizer(config, Rates({"": lambda count: jnp.asarray(rates)[count]}), AXES)
    ours = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(ours)
    for gradients in steps:
        updates, state = optimizer.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)

    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [{"params": [theirs["kernel"]], "weight_decay": 0.1}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-6)
    for gradients, rate in zip(steps, rates, strict=True):
        for group in reference.param_groups:
            group["lr"] = rate
        for name, value in gradients.items():
            theirs[name].grad = torch.from_numpy(value.copy())
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
        reference.step()
    for name in AXES:
        np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), rtol=2e-5, atol=2e-6)


def test_only_matrices_decay_scanned_layers_or_not():
    parameters = abstract_parameters(MODEL)
    mask = flatten_dict(decay_mask(logical_axes(MODEL), AdamWConfig().not_decayed)(parameters), sep="/")
    assert {path for path, decays in mask.items() if decays} == {
        path for path in mask if path.endswith(("kernel", "embedding")) and not path.endswith("position_embedding")
    }
    assert mask["encoder/blocks/attention/query/kernel"]
    assert not mask["encoder/blocks/attention/query/bias"]
    assert not mask["decoder/blocks/attention_norm/scale"]


def drawn(seed: int):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), jnp.float32), PARAMETERS)


PARAMETERS = abstract_parameters(MODEL)
RATE = Rates({"": lambda step: 0.1})


@pytest.mark.parametrize("config", [AdamWConfig(), LionConfig(), AdafactorConfig(smallest_factored=8), MuonConfig()])
def test_state_has_the_shardings_of_the_parameters_it_is_about(config):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shardings = parameter_shardings(logical_axes(MODEL), PARAMETERS, mesh)
    optimizer = make_optimizer(config, RATE, logical_axes(MODEL))
    abstract = abstract_state(PARAMETERS, shardings, ("**",), jnp.float32, optimizer, mesh)
    largest = max(jax.tree.leaves(abstract.optimizer_state), key=lambda leaf: np.prod(leaf.shape))
    assert largest.sharding.num_devices == 8
    assert np.prod(largest.sharding.shard_shape(largest.shape)) < np.prod(largest.shape)
    with use_mesh(mesh):
        parameters = jax.jit(
            lambda: jax.tree.map(lambda leaf: jnp.ones(leaf.shape), PARAMETERS), out_shardings=shardings
        )()
        state = jax.jit(optimizer.init, out_shardings=shardings_of(abstract.optimizer_state))(parameters)
        updates, _ = jax.jit(optimizer.update)(parameters, state, parameters)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (
            LionConfig(clip_norm=None, weight_decay=0.1),
            lambda mask: optax.lion(0.1, 0.9, 0.99, weight_decay=0.1, mask=mask),
        ),
        (
            AdafactorConfig(clip_norm=None, smallest_factored=8),
            lambda mask: optax.adafactor(0.1, min_dim_size_to_factor=8, multiply_by_parameter_scale=False),
        ),
    ],
    ids=["lion", "adafactor"],
)
def test_optimizers_are_those_of_optax(config, reference):
    optimizer = make_optimizer(config, RATE, logical_axes(MODEL))
    theirs = reference(decay_mask(logical_axes(MODEL), config.not_decayed))
    found = expected = drawn(0)
    state, their_state = optimizer.init(found), theirs.init(expected)
    for step in range(1, 4):
        updates, state = optimizer.update(drawn(step), state, found)
        their_updates, their_state = theirs.update(drawn(step), their_state, expected)
        found, expected = optax.apply_updates(found, updates), optax.apply_updates(expected, their_updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


def test_muon_makes_each_layers_matrices_orthogonal_and_leaves_the_rest_to_adam():
    optimizer = make_optimizer(MuonConfig(clip_norm=None), Rates({"": lambda step: 1.0}), logical_axes(MODEL))
    updates, _ = optimizer.update(drawn(1), optimizer.init(drawn(0)), drawn(0))
    flat = flatten_dict(updates, sep="/")
    kernel = np.asarray(flat["decoder/blocks/feed_forward/up/kernel"])
    heads = np.asarray(flat["decoder/blocks/attention/output/kernel"]).reshape(2, 16, 16)
    for layer in (*kernel, *heads):
        singular = np.linalg.svd(layer, compute_uv=False) / (0.2 * math.sqrt(max(layer.shape)))
        # Five Newton-Schulz iterations with Muon's coefficients leave singular values about 1.
        assert (singular > 0.6).all() and (singular < 1.25).all()
    adam = optax.adam(1.0, nesterov=True)
    expected, _ = adam.update(drawn(1), adam.init(drawn(0)))
    for path in ("decoder/token_embedding/embedding", "decoder/blocks/attention_norm/scale"):
        np.testing.assert_allclose(flat[path], flatten_dict(expected, sep="/")[path], rtol=1e-5)


def test_only_matrices_from_and_to_hidden_states_are_muons():
    axes = flatten_dict(logical_axes(MODEL), sep="/")
    chosen = {path for path, names in axes.items() if hidden_matrix(path, names)}
    kernels = {path for path in axes if path.endswith("/kernel") and path != "decoder/output/kernel"}
    assert chosen == kernels
    assert hidden_matrix("a/kernel", ("layers", "experts", "feed_forward", "embed")) == MuonDimensionNumbers((2,), (3,))
