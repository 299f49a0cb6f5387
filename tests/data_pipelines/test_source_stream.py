from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.source_stream import Cursor, Deal, SourceStream, Strand
from tests.support.tiny_stream import MemorySource

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any)


def epochs_of(deal, strand, epochs):
    """Yields (epoch, (shard, place)) of a strand's first epochs."""
    walk = Strand(deal, strand, Cursor())
    while True:
        entry = next(walk)
        epoch = (strand + walk.cursor.unit * deal.strands) // deal.units
        if epoch >= epochs:
            return
        yield epoch, (entry.shard, entry.place)


@settings(max_examples=60, deadline=None)
@given(sizes=SHARDS, strands=st.integers(1, 12), indexed=st.booleans(), seed=st.integers(0, 99))
def test_every_record_of_an_epoch_comes_exactly_once(sizes, strands, indexed, seed):
    deal = Deal(MemorySource(sizes, indexed), seed, strands)
    met = Counter(found for strand in range(strands) for found in epochs_of(deal, strand, epochs=2))
    places = [(shard, place) for shard, size in enumerate(sizes) for place in range(size)]
    assert met == Counter((epoch, place) for epoch in range(2) for place in places)


@settings(max_examples=60, deadline=None)
@given(sizes=SHARDS, indexed=st.booleans(), window=st.integers(1, 9), stop=st.integers(0, 60))
def test_a_stream_goes_on_where_its_state_says(sizes, indexed, window, stop):
    deal = Deal(MemorySource(sizes, indexed), 3, 4)
    whole = SourceStream(deal, (0, 2), window)
    taken = [next(whole) for _ in range(stop)]
    resumed = SourceStream(deal, (0, 2), window, whole.state())
    assert len(taken) == stop
    assert [next(resumed) for _ in range(20)] == [next(whole) for _ in range(20)]


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_every_strand_is_read_however_short_the_blocks_are(window):
    deal = Deal(MemorySource([4, 4, 4], indexed=False), 0, 3)
    state, met = None, []
    for _ in range(12):
        stream = SourceStream(deal, (0, 1, 2), window, state)
        met.append(next(stream))
        state = stream.state()
    # A block at the end may hold one entry of the next epoch for one of this.
    whole_blocks = met[: 12 // window * window]
    assert len({(entry.shard, entry.place) for entry in whole_blocks}) == len(whole_blocks)
    assert {entry.shard for entry in met} == {0, 1, 2}


def test_epochs_and_lanes_differ_in_order():
    deal = Deal(MemorySource([50], indexed=True), 0, 1)
    order = [place for _, (_, place) in epochs_of(deal, 0, epochs=2)]
    assert order[:50] != order[50:] and order[:50] != list(range(50))


def test_shards_without_a_single_record_are_an_error():
    with pytest.raises(ValueError, match="hold no record at all"):
        next(Strand(Deal(MemorySource([0, 0], indexed=False), 0, 2), 0, Cursor()))
