from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.draws import choose


def drawn(weights, draws):
    counts = [0] * len(weights)
    for _ in range(draws):
        counts[choose(weights, counts)] += 1
    return counts


def test_a_blend_of_three_to_one():
    assert drawn([3, 1], 8) == [6, 2]


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), draws=st.integers(1, 300))
def test_counts_stay_near_their_shares(weights, draws):
    counts = drawn(weights, draws)
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - draws * weight / sum(weights)) < 1 + len(weights) / 2
