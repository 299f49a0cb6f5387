import math

import pytest

from mllm_jax.training.schedules import ScheduleConfig, make_schedule


def values(config, steps):
    schedule = make_schedule(config, steps)
    return [float(schedule(step)) for step in range(steps + 1)]


def test_cosine_follows_its_formula_after_a_linear_warmup():
    found = values(ScheduleConfig(kind="cosine", peak=2.0, warmup=4, final=0.1), 20)
    assert found[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    for step in range(4, 21):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))
        assert found[step] == pytest.approx(2.0 * (0.1 + 0.9 * cosine), rel=1e-5)


def test_linear_ends_at_the_final_fraction():
    found = values(ScheduleConfig(kind="linear", peak=1.0, warmup=0.0, final=0.5), 10)
    assert found == pytest.approx([1 - 0.05 * step for step in range(11)])


def test_constant_holds_the_peak():
    assert values(ScheduleConfig(kind="constant", peak=0.3, warmup=2), 5) == pytest.approx(
        [0, 0.15, 0.3, 0.3, 0.3, 0.3]
    )


def test_warmup_stable_decay():
    found = values(ScheduleConfig(kind="wsd", peak=1.0, warmup=0.2, decay=0.4), 10)
    assert found == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ScheduleConfig(warmup=10), "a warm-up of 10 steps does not fit into a stage of 10 steps"),
        (ScheduleConfig(kind="wsd", warmup=5, decay=6), "a decay of 6 steps does not fit into the 5 steps"),
    ],
)
def test_lengths_that_do_not_fit_are_errors(config, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(config, 10)


def test_a_length_is_a_fraction_or_a_whole_number():
    with pytest.raises(ValueError, match=r"warmup is 1\.5; use a fraction below 1 or a whole number"):
        ScheduleConfig(warmup=1.5)
