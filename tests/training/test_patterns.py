import pytest

from mllm_jax.training.patterns import PatternError, choose, matches

PATHS = (
    "connector/layers_0/kernel",
    "connector/layers_0/bias",
    "decoder/blocks/attention_norm/scale",
    "decoder/final_norm/scale",
)


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("**", PATHS),
        ("connector/**", PATHS[:2]),
        ("**/scale", PATHS[2:]),
        ("*/layers_?/kernel", PATHS[:1]),
        ("decoder/**/*_norm/*", PATHS[2:]),
        ("decoder/final_norm/scale", PATHS[3:]),
    ],
)
def test_patterns_choose_paths(pattern, chosen):
    assert {path for path in PATHS if matches(pattern, path)} == set(chosen)


def test_a_star_stays_within_one_part():
    assert not matches("connector/*", "connector/layers_0/kernel")


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(PatternError, match=r"'conector/\*\*' matches no parameter\. The nearest are: connector/\*\*"):
        choose(("decoder/**", "conector/**"), PATHS)
