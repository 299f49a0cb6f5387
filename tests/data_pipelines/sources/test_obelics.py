import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.quota import Skip
from data_pipelines.sources.documents import NamedImage
from data_pipelines.sources.obelics import ObelicsConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage
from tests.support.documents import seen

URL = "https://example.org/a cat?.jpg"
NAME = hashlib.sha256(URL.encode()).hexdigest() + ".jpg"
GOOD = {"images": [URL, None, None], "texts": [None, "A cat.\n\nIt sleeps.", "The end."]}


@pytest.fixture
def open_source(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / NAME).write_bytes(b"pixels")
    (images / "a.png").write_bytes(b"other pixels")

    def open_with(*documents, **config):
        path = tmp_path / "documents.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in documents))
        return ObelicsConfig(**({"files": str(path), "images": str(images)} | config)).open(Storage())

    return open_with


def test_images_are_files_named_by_the_hash_of_their_url(open_source):
    (record,) = records(open_source(GOOD))
    assert seen(record) == [b"pixels", "A cat.\n\nIt sleeps.\n\nThe end."]
    (missing,) = records(open_source(GOOD, url_hash="md5", extension="png"))
    assert missing.cause == "missing_image" and hashlib.md5(URL.encode()).hexdigest() + ".png" in missing.detail


def test_a_document_may_name_its_images_itself(open_source):
    (record,) = records(open_source(GOOD | {"names": ["a.png", None, None]}, image_names="names"))
    assert seen(record)[0] == b"other pixels"


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (7, "not_an_object"),
        ({"texts": ["a"]}, "lengths_differ"),
        ({"images": [None], "texts": "a"}, "lengths_differ"),
        ({"images": [None, URL], "texts": ["a"]}, "lengths_differ"),
        ({"images": [None], "texts": [None]}, "not_interleaved"),
        ({"images": [URL], "texts": ["a"]}, "not_interleaved"),
        ({"images": [7, None], "texts": [None, "a"]}, "not_interleaved"),
        ({"images": [URL], "texts": [None]}, "no_text"),
        ({"images": [URL + "x", None], "texts": [None, "a"]}, "missing_image"),
        ({"images": ["\ud800", None], "texts": [None, "a"]}, "missing_image"),
        ({"images": [None], "texts": ["a"]}, "filtered_images"),
    ],
)
def test_a_bad_document_is_skipped_by_cause_and_the_next_is_read(open_source, value, cause):
    skip, good = records(open_source(value, GOOD))
    assert isinstance(skip, Skip) and skip.cause == cause and skip.key.endswith(".jsonl:0")
    assert not isinstance(good, Skip)


@pytest.mark.parametrize(
    ("names", "cause"), [(None, "lengths_differ"), (["a.png"], "lengths_differ"), ([None] * 3, "missing_image_name")]
)
def test_names_that_do_not_fit_are_a_skip(open_source, names, cause):
    (skip,) = records(open_source(GOOD | {"names": names}, image_names="names"))
    assert skip.cause == cause


@given(st.lists(st.tuples(st.booleans(), st.text(max_size=5)), max_size=8))
def test_texts_and_images_keep_their_order(places):
    value = {
        "images": [text if is_image else None for is_image, text in places],
        "texts": [None if is_image else text for is_image, text in places],
        "names": [text if is_image else None for is_image, text in places],
    }
    pieces = ObelicsConfig(files="unused", image_names="names").pieces(value, "key")
    assert [isinstance(piece, NamedImage) for piece in pieces] == [is_image for is_image, _ in places]
    assert [piece for piece in pieces if isinstance(piece, str)] == [text for is_image, text in places if not is_image]
