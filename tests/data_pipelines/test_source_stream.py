import json
from collections import Counter
from itertools import islice
from math import ceil, floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.passes import Passes, passes_of
from data_pipelines.source_stream import Cursor, Deal, SourceStream, Strand
from data_pipelines.sources.source import entry_counts
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


@settings(max_examples=80, deadline=None)
@given(
    sizes=SHARDS,
    lanes=st.integers(1, 5),
    open_shards=st.integers(1, 3),
    indexed=st.booleans(),
    window=st.integers(1, 9),
    epochs=st.sampled_from([0.3, 1, 1.5, 2, 2.75]),
    stop=st.integers(0, 30),
)
def test_a_stream_that_ends_gives_every_record_as_often_as_its_epochs_say(
    sizes, lanes, open_shards, indexed, window, epochs, stop
):
    """Over all lanes, also where each went on from its state; of part of an epoch the first part of its order."""
    source = MemorySource(sizes, indexed)
    passes = passes_of(epochs, lambda: entry_counts(source))
    deal = Deal(source, 3, lanes * open_shards, passes)
    met = []
    for lane in range(lanes):
        strands = tuple(lane + turn * lanes for turn in range(open_shards))
        stream = SourceStream(deal, strands, window)
        met += islice(stream, stop)
        stream = SourceStream(deal, strands, window, json.loads(json.dumps(stream.state())))
        met += stream
        assert stream.epochs == pytest.approx(epochs)
        assert not list(SourceStream(deal, strands, window, stream.state()))
    times = Counter((entry.shard, entry.place) for entry in met)
    assert len(met) == passes.entries(sum(sizes))
    assert all(count in (floor(epochs), ceil(epochs)) for count in times.values())
    assert set(Counter((entry.shard, entry.place, entry.epoch) for entry in met).values()) <= {1}
    endless = Deal(source, 3, lanes * open_shards)
    for epoch, place in ((entry.epoch, (entry.shard, entry.place)) for entry in met if entry.epoch == floor(epochs)):
        order = order_of(endless, epoch, place[0])
        assert order.index(place) < passes.end(epoch, place[0])


def order_of(deal, epoch, shard):
    """The order in which an epoch meets the entries of a shard, its parts taken together."""
    met = {}
    for strand in range(deal.strands):
        walk = Strand(deal, strand, Cursor())
        while (entry := next(walk)).epoch <= epoch:
            if (entry.epoch, entry.shard) == (epoch, shard):
                met[walk.cursor.ordinal] = (entry.shard, entry.place)
    return [met[ordinal] for ordinal in sorted(met)]


def test_epochs_and_lanes_differ_in_order():
    deal = Deal(MemorySource([50], indexed=True), 0, 1)
    order = [place for _, (_, place) in epochs_of(deal, 0, epochs=2)]
    assert order[:50] != order[50:] and order[:50] != list(range(50))


def test_shards_without_a_single_record_are_an_error():
    with pytest.raises(ValueError, match="hold no record at all"):
        next(Strand(Deal(MemorySource([0, 0], indexed=False), 0, 2), 0, Cursor()))
    with pytest.raises(ValueError, match="hold no record at all"):
        next(SourceStream(Deal(MemorySource([0, 0], indexed=False), 0, 2, Passes(1)), (0,), 3))
