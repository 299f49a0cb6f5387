import json

from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources.json_index import spans_of

VALUES = st.lists(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=6,
)


class Bytes:
    """What the index needs of a storage."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, path: str, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def spans(data: bytes, chunk: int = 1 << 22) -> list[tuple[int, int]]:
    return list(spans_of("memory", len(data), Bytes(data), chunk))


@settings(max_examples=100, deadline=None)
@given(values=VALUES, indent=st.sampled_from([None, 1]), plain=st.booleans(), chunk=st.integers(1, 40))
def test_the_elements_of_an_array_are_found_whatever_the_chunks(values, indent, plain, chunk):
    data = json.dumps(values, indent=indent, ensure_ascii=plain).encode()
    found = spans(data, chunk)
    assert [json.loads(data[offset : offset + length]) for offset, length in found] == values


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200) | st.text('[]{}",\\ 1a\n', max_size=200).map(lambda text: f"[{text}".encode()))
def test_any_bytes_give_places_inside_the_file(data):
    for offset, length in spans(data):
        assert 0 <= offset <= len(data) and offset + max(length, 0) <= len(data)


def test_a_quote_that_never_closes_costs_one_scan():
    assert spans(b'[{"a": 1}, {"b": "' + b"x" * 2_000_000)[-1][1] == -1


def test_numbers_and_null_are_elements_too():
    data = b'[0, {"a": 1}, null,2]'
    found = [data[offset : offset + length].strip() for offset, length in spans(data)]
    assert found == [b"0", b'{"a": 1}', b"null", b"2"]
