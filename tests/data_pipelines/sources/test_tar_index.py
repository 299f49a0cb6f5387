"""An index says of any tar, whole or broken, exactly what a walk over its headers says."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources.tar_index import DamagedIndexError, TarIndex, about
from data_pipelines.sources.tar_samples import samples
from tests.support.random_tars import tars
from tests.support.tiny_stream import tar_bytes


def walk(data, start=0):
    return list(samples(lambda offset, length: data[offset : offset + length], len(data), start))


def again(index, version):
    """The index from its bytes."""
    loaded, said = TarIndex.from_bytes(index.to_bytes(version))
    assert said == version
    return loaded


@settings(max_examples=200, deadline=None)
@given(data=tars())
def test_an_index_gives_what_the_walk_gives_from_every_place(data):
    whole = walk(data)
    index = again(TarIndex.of(whole), {"size": len(data)})
    assert list(index.samples()) == whole
    for found in whole:
        place = getattr(found, "place", None)
        if place is not None:
            assert list(index.samples(place)) == walk(data, place)
            assert list(index.samples(found.following)) == walk(data, found.following)


WHOLE = TarIndex.of(walk(tar_bytes([(f"{number}.{name}", b"x") for number in range(9) for name in ("jpg", "txt")])))
BYTES = WHOLE.to_bytes({"size": 9})


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(BYTES) - 1), value=st.integers(0, 255), end=st.integers(0, len(BYTES)))
def test_no_damaged_byte_goes_unnoticed(place, value, end):
    damaged = bytearray(BYTES)
    damaged[place] = value
    for data in (bytes(damaged), BYTES[:end]):
        if data != BYTES:
            with pytest.raises(DamagedIndexError):
                TarIndex.from_bytes(data)


def test_what_it_is_the_index_of_stands_at_its_beginning():
    assert about(io.BytesIO(BYTES)) == {"size": 9}
    for data in (b"", BYTES[:30], BYTES[:50], bytes(100), b"\x93NUMPY" + BYTES):
        with pytest.raises(DamagedIndexError):
            about(io.BytesIO(data))


def test_an_index_of_a_tar_of_pairs_takes_few_bytes_a_sample():
    members = [(f"{number:09d}.{name}", bytes(99)) for number in range(1000) for name in ("jpg", "json", "txt")]
    assert len(TarIndex.of(walk(tar_bytes(members))).to_bytes({})) < 45 * 1000
