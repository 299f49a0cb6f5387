"""Losses of a mixture's routers are part of the training loss, in units of a supervised token."""

import jax
import numpy as np

from mllm_jax.models.layers.experts import ExpertsConfig
from mllm_jax.models.parameters import init_parameters, make_model
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective
from tests.support.tiny_training import MODEL, tiny_batch

EXPERTS = ExpertsConfig(count=4, chosen=2, width=8)
MIXTURE = MODEL.model_copy(update={"decoder": MODEL.decoder.model_copy(update={"experts": EXPERTS})})


def test_the_weights_scale_the_losses() -> None:
    model, parameters, batch = make_model(MIXTURE), init_parameters(MIXTURE, jax.random.key(0)), tiny_batch(0)
    weight = np.asarray(batch.loss_weights).sum()

    @jax.jit
    def losses(parameters, batch):
        settings = ((0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (0.0, 1.0))
        configs = [NextTokenConfig(balance_weight=balance, router_weight=router) for balance, router in settings]
        return [next_token_objective(model, config)(parameters, batch) for config in configs]

    plain, balanced, thrice, normalised = (np.asarray(loss) for loss in losses(parameters, batch))
    balance = (balanced - plain) / weight
    assert 1.5 < balance < EXPERTS.count
    np.testing.assert_allclose((thrice - plain) / weight, 3 * balance, rtol=1e-4)
    assert normalised > plain
    assert NextTokenConfig().plain() == NextTokenConfig(balance_weight=0.0)
