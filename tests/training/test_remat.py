"""What is recomputed changes neither losses nor gradients."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models.layers.stack import RematName, StackConfig
from mllm_jax.models.parameters import abstract_parameters, make_model
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective
from tests.support.tiny_training import MODEL, initial_parameters, tiny_batch


def learned(remat: RematName, scan: bool):
    stack = StackConfig(remat=remat, scan=scan)
    parts = {part: getattr(MODEL, part).model_copy(update={"stack": stack}) for part in ("encoder", "decoder")}
    config = MODEL.model_copy(update=parts)
    objective = next_token_objective(make_model(config), NextTokenConfig())
    parameters = initial_parameters(abstract_parameters(config))
    return jax.jit(jax.value_and_grad(objective))(parameters, jax.tree.map(jnp.asarray, tiny_batch(0)))


@pytest.mark.parametrize("remat", [name for name in get_args(RematName) if name != "none"])
def test_what_is_recomputed_does_not_change_what_is_learned(remat):
    for found, expected in zip(
        jax.tree.leaves(learned(remat, True)), jax.tree.leaves(learned("none", True)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
