import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.parameters import abstract_parameters, logical_axes
from mllm_jax.training.patterns import PatternError
from mllm_jax.training.rate_groups import RateGroupConfig, make_rates, scale_by_rates
from mllm_jax.training.schedules import ScheduleConfig
from tests.support.tiny_training import MODEL

SCHEDULE = ScheduleConfig(kind="constant", peak=0.1, warmup=0)
UNSCANNED = MODEL.model_copy(update={"decoder": MODEL.decoder.model_copy(update={"stack": StackConfig(scan=False)})})


def rates_of_all(groups, model=MODEL, step=10, schedule=SCHEDULE):
    """The rate of every parameter, by path, after `step` steps."""
    parameters = abstract_parameters(model)
    transformation = scale_by_rates(make_rates(schedule, groups, 100, parameters, logical_axes(model)))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), parameters)
    state = optax.ScaleByScheduleState(jnp.asarray(step))
    return flatten_dict(transformation.update(ones, state)[0], sep="/")


def test_a_parameter_learns_at_the_rate_of_the_first_group_that_it_fits():
    groups = {
        "norms": RateGroupConfig(parameters=("encoder/**/*_norm/**",), rate=3.0),
        "encoder": RateGroupConfig(parameters=("encoder/**",), rate=0.5),
    }
    for path, rates in rates_of_all(groups).items():
        expected = (0.3 if "_norm" in path else 0.05) if path.startswith("encoder") else 0.1
        np.testing.assert_allclose(rates, expected, rtol=1e-6, err_msg=path)


def test_a_group_warms_up_by_itself():
    groups = {"connector": RateGroupConfig(parameters=("connector/**",), warmup=20)}
    assert float(rates_of_all(groups)["connector/layers_0/bias"][0]) == pytest.approx(0.05)
    assert float(rates_of_all(groups)["decoder/final_norm/scale"][0]) == pytest.approx(0.1)


def test_lower_layers_learn_slower_scanned_or_not():
    groups = {"decoder": RateGroupConfig(parameters=("decoder/**",), layer_decay=0.5)}
    scanned, unscanned = rates_of_all(groups), rates_of_all(groups, UNSCANNED)
    for layer, expected in ((0, 0.025), (1, 0.05)):
        np.testing.assert_allclose(scanned["decoder/blocks/feed_forward/up/kernel"][layer], expected, rtol=1e-6)
        np.testing.assert_allclose(unscanned[f"decoder/blocks_{layer}/feed_forward/up/kernel"], expected, rtol=1e-6)
    for rates in (scanned, unscanned):
        np.testing.assert_allclose(rates["decoder/token_embedding/embedding"], 0.0125, rtol=1e-6)
        np.testing.assert_allclose(rates["decoder/output/kernel"], 0.1, rtol=1e-6)
        np.testing.assert_allclose(rates["decoder/final_norm/scale"], 0.1, rtol=1e-6)
        np.testing.assert_allclose(rates["connector/layers_0/kernel"], 0.1, rtol=1e-6)


def test_a_group_of_nothing_is_refused():
    with pytest.raises(PatternError, match=r"groups.vision.parameters: .*'vision/\*\*' matches no parameter"):
        rates_of_all({"vision": RateGroupConfig(parameters=("vision/**",))})
    with pytest.raises(PatternError, match=r"groups.late.parameters: all that it chooses is in the groups before it"):
        rates_of_all({name: RateGroupConfig(parameters=("encoder/**",)) for name in ("first", "late")})
