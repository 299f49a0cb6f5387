from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.stores.expected_reads import ExpectedReads

PLACES = st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(4, 9))


@given(st.lists(st.tuples(st.sampled_from(["begin", "add", "take"]), PLACES), max_size=80))
def test_each_read_is_handed_over_once_and_the_bytes_stay_within_the_limit(steps):
    reads, begun = ExpectedReads(20), {}
    for step, place in steps:
        if step == "begin":
            reads.begin()
        elif step == "add":
            reads.add(place, lambda place=place: begun.setdefault(place, Future()))
        else:
            taken = reads.take(place)
            assert taken is None or taken is begun.pop(place)
            assert reads.take(place) is None
        assert 0 <= reads.bytes <= 20


def test_what_nobody_takes_is_given_up():
    reads = ExpectedReads(10)
    reads.begin()
    reads.add(("a", 0, 10), Future)
    reads.add(("b", 0, 1), Future)
    assert reads.take(("b", 0, 1)) is None, "there was no room"
    for _ in range(16):
        reads.begin()
    assert reads.bytes == 0 and reads.take(("a", 0, 10)) is None
