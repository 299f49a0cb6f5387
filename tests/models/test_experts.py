"""A mixture of experts: what its routing computes, what its losses are, and that a mesh changes nothing."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mllm_jax.models.layers.experts import (
    ROUTING,
    Experts,
    ExpertsConfig,
    RouterSums,
    balance_loss,
    normaliser_loss,
    total_sums,
)
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.parallel.rules import batch_sharding, use_mesh

DROPLESS = ExpertsConfig(count=4, chosen=2, width=6)
NARROW = DROPLESS.model_copy(update={"routing": "capacity", "capacity_factor": 0.5})
GENERATOR = np.random.default_rng(0)
HIDDEN = jnp.asarray(GENERATOR.standard_normal((8, 10, 8)), jnp.float32)
SEGMENT_IDS = jnp.asarray(np.repeat([[1, 2, 0]], 8, axis=0).repeat([5, 3, 2], axis=1))
REAL = np.asarray(SEGMENT_IDS) > 0
PARAMETERS = {
    "router": {"kernel": jnp.asarray(GENERATOR.standard_normal((8, 4)), jnp.float32)},
    "gate": {"kernel": jnp.asarray(0.3 * GENERATOR.standard_normal((4, 8, 6)), jnp.float32)},
    "up": {"kernel": jnp.asarray(0.3 * GENERATOR.standard_normal((4, 8, 6)), jnp.float32)},
    "down": {"kernel": jnp.asarray(0.3 * GENERATOR.standard_normal((4, 6, 8)), jnp.float32)},
}


def run(config: ExpertsConfig, parameters: Any, hidden: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, Any]:
    """The outputs of the tokens that are not padding, and what the router left."""
    model = Experts(config, "silu")
    outputs, left = model.apply({"params": parameters}, hidden, segment_ids, mutable=[ROUTING])
    return jnp.where(segment_ids[..., None] > 0, outputs, 0), total_sums(left)


def one_by_one(capacity: int) -> np.ndarray:
    """The same in NumPy, a token and an expert at a time; first choices of a row come before second ones."""
    hidden, kernels = np.asarray(HIDDEN), jax.tree.map(np.asarray, PARAMETERS)
    outputs = np.zeros_like(hidden)
    for row in range(len(hidden)):
        logits = hidden[row] @ kernels["router"]["kernel"]
        shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        order = np.argsort(-shares, axis=-1)[:, :2]
        taken = np.zeros(4, int)
        for choice in range(2):
            for token in np.flatnonzero(REAL[row]):
                expert = order[token, choice]
                taken[expert] += 1
                if taken[expert] > capacity:
                    continue
                gate = hidden[row, token] @ kernels["gate"]["kernel"][expert]
                inner = gate / (1 + np.exp(-gate)) * (hidden[row, token] @ kernels["up"]["kernel"][expert])
                weight = shares[token, expert] / shares[token, order[token]].sum()
                outputs[row, token] += weight * (inner @ kernels["down"]["kernel"][expert])
    return outputs


@pytest.mark.parametrize("config", [DROPLESS, NARROW], ids=["dropless", "capacity"])
def test_tokens_go_through_their_experts(config: ExpertsConfig) -> None:
    outputs, _ = jax.jit(run, static_argnums=0)(config, PARAMETERS, HIDDEN, SEGMENT_IDS)
    capacity = 10 if config is DROPLESS else config.capacity(10)
    np.testing.assert_allclose(outputs, one_by_one(capacity), atol=1e-5)


def test_losses_of_the_router() -> None:
    _, sums = jax.jit(run, static_argnums=0)(DROPLESS, PARAMETERS, HIDDEN, SEGMENT_IDS)
    logits = torch.tensor(np.asarray(HIDDEN @ PARAMETERS["router"]["kernel"]).reshape(-1, 4))
    expected = load_balancing_loss_func((logits,), 4, 2, torch.tensor(REAL))
    np.testing.assert_allclose(balance_loss(sums), expected.numpy(), rtol=1e-6)
    squares = torch.logsumexp(logits, dim=-1)[torch.tensor(REAL.reshape(-1))] ** 2
    np.testing.assert_allclose(normaliser_loss(sums), squares.mean().numpy(), rtol=1e-6)


def test_the_balance_is_that_of_all_layers_together() -> None:
    logits = [torch.tensor(GENERATOR.standard_normal((6, 4)), dtype=torch.float32) for _ in range(3)]

    def sums(layer: torch.Tensor) -> RouterSums:
        assigned = torch.nn.functional.one_hot(layer.topk(2).indices, 4).sum(dim=(0, 1))
        parts = assigned.float(), layer.softmax(dim=-1).sum(dim=0), torch.tensor(0.0), torch.tensor(6.0)
        return RouterSums(*(jnp.asarray(part.numpy()) for part in parts))

    scanned = jax.tree.map(lambda *parts: jnp.stack(parts), *map(sums, logits))
    unscanned = {f"blocks_{layer}": {"sums": sums(part)} for layer, part in enumerate(logits)}
    expected = load_balancing_loss_func(tuple(logits), 4, 2).numpy()
    for left in ({"blocks": {"sums": scanned}}, unscanned):
        np.testing.assert_allclose(balance_loss(total_sums(left)), expected, rtol=1e-6)


def test_losses_that_cannot_be_collected_are_an_error() -> None:
    with pytest.raises(ValueError, match="no router left its sums"):
        total_sums({})


MESHES = [MeshConfig(data=2, expert=4), MeshConfig(data=1, fsdp=2, expert=2, tensor=2)]


def loss(config: ExpertsConfig, parameters: Any, hidden: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, Any]:
    outputs, sums = run(config, parameters, hidden, segment_ids)
    return jnp.mean(outputs**2) + balance_loss(sums), outputs


def gradients(config: ExpertsConfig, *arguments: Any) -> Any:
    return jax.jit(jax.value_and_grad(partial(loss, config), argnums=(0, 1), has_aux=True))(*arguments)


@cache
def on_one_device(config: ExpertsConfig) -> Any:
    return gradients(config, PARAMETERS, HIDDEN, SEGMENT_IDS)


@pytest.mark.parametrize("config", [DROPLESS, NARROW], ids=["dropless", "capacity"])
@pytest.mark.parametrize("mesh_config", MESHES, ids=["expert", "fsdp expert tensor"])
def test_a_mesh_changes_neither_outputs_nor_gradients(config: ExpertsConfig, mesh_config: MeshConfig) -> None:
    mesh = make_mesh(mesh_config)
    with use_mesh(mesh):
        rows = jax.device_put((HIDDEN, SEGMENT_IDS), batch_sharding(mesh))
        sharded = gradients(config, PARAMETERS, *rows)

    def close(ours: jax.Array, whole: jax.Array) -> None:
        np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-5)

    jax.tree.map(close, sharded, on_one_device(config))
