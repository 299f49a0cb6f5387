import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict

from mllm_jax.models.parameters import abstract_parameters, logical_axes
from mllm_jax.training.optimizers import AdamWConfig, decay_mask, make_optimizer
from tests.support.tiny_training import MODEL

AXES = {"kernel": ("layers", "embed", "feed_forward"), "bias": ("layers", "heads", "head_width")}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_adamw_is_torchs_with_decay_on_the_kernel_alone(clip_norm):
    random = np.random.default_rng(0)
    start = {name: random.standard_normal((2, 3, 4)).astype(np.float32) for name in AXES}
    steps = [{name: random.standard_normal((2, 3, 4)).astype(np.float32) for name in AXES} for _ in range(4)]
    rates = [0.0, 0.1, 0.05, 0.02]

    config = AdamWConfig(beta2=0.95, epsilon=1e-6, weight_decay=0.1, clip_norm=clip_norm)
    optimizer = make_optimizer(config, lambda count: jnp.asarray(rates)[count], AXES)
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
