from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources.source import Entry
from data_pipelines.sources.walk_cache import WalkCache

SIZES = (0, 3, 5, 9, 2)


def fresh(shard, place):
    return (Entry(shard, 10 * n, 10 * n + 10, None) for n in range((place + 9) // 10, SIZES[shard]))


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(0, 12),
    walks=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 12)), max_size=12),
)
def test_a_cached_walk_is_a_fresh_one(limit, walks):
    """Whatever was walked before, whole or in part."""
    cache = WalkCache(limit)
    for shard, start, taken in walks:
        walk = cache.walk(shard, 10 * start, fresh)
        assert [entry for entry, _ in zip(walk, range(taken), strict=False)] == list(fresh(shard, 10 * start))[:taken]


def test_a_shard_is_walked_once():
    walks = []

    def counted(shard, place):
        walks.append(shard)
        return fresh(shard, place)

    cache = WalkCache()
    for _ in range(3):
        assert len(list(cache.walk(2, 0, counted))) == 5
    assert walks == [2]
