from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.permutation import permuted, seed_of, shuffled


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**64 - 1))
def test_every_index_comes_once(size, seed):
    assert sorted(permuted(index, size, seed) for index in range(size)) == list(range(size))
    assert sorted(shuffled(size, seed)) == list(range(size))


def test_orders_never_change_between_versions():
    assert [permuted(index, 10, 7) for index in range(10)] == [9, 8, 6, 3, 1, 4, 0, 2, 5, 7]
    assert shuffled(8, 7).tolist() == [6, 3, 4, 0, 2, 7, 5, 1]
    assert seed_of(1, "pairs", 3) == 13445204721991092695


def test_seed_depends_on_every_part_and_its_kind():
    assert len({seed_of(1, "2"), seed_of("1", 2), seed_of("1", "2"), seed_of(12), seed_of("12")}) == 5


def test_an_order_of_a_billion_costs_no_memory():
    assert permuted(5, 10**9, 3) != permuted(6, 10**9, 3)
