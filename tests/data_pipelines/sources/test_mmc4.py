import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImageBytes, ImagePart, TextPart
from data_pipelines.sources.documents import NamedImage
from data_pipelines.sources.mmc4 import Mmc4Config
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage
from tests.support.documents import seen

CATS = ["Cats.", "A cat sleeps.", "It wakes.", "The end."]


def matched(name, sentence, similarity=0.3):
    return {"image_name": name, "matched_text_index": sentence, "matched_sim": similarity}


def document(*image_info, texts=CATS, **more):
    return {"text_list": list(texts), "image_info": list(image_info)} | more


GOOD = document(matched("a.png", 1), matched("b.png", 3))


@pytest.fixture
def open_source(tmp_path):
    """Opens documents as JSONL, with the images a.png, b.png and empty.png in a folder."""
    images = tmp_path / "images"
    images.mkdir()
    for name, data in (("a.png", b"pixels a"), ("b.png", b"pixels b"), ("empty.png", b"")):
        (images / name).write_bytes(data)

    def open_with(*documents, **config):
        path = tmp_path / "documents.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in documents))
        return Mmc4Config(**({"files": str(path), "images": str(images)} | config)).open(Storage())

    return open_with


def outcomes(source):
    return [found.cause if isinstance(found, Skip) else "good" for found in records(source)]


def test_a_document_is_one_learned_turn_with_images_before_their_sentences(open_source, tmp_path):
    source = open_source(GOOD)
    (record,) = records(source)
    (turn,) = record.turns
    assert (turn.role, turn.learn) == ("assistant", True)
    assert turn.parts == (
        TextPart("Cats."),
        ImagePart(ByteRange(str(tmp_path / "images" / "a.png"), 0, 8)),
        TextPart("A cat sleeps. It wakes."),
        ImagePart(ByteRange(str(tmp_path / "images" / "b.png"), 0, 8)),
        TextPart("The end."),
    )
    assert record.key == f"{tmp_path / 'documents.jsonl'}:0" and record.left_out == ()


def test_images_may_stand_after_their_sentences_in_the_order_in_which_they_are_listed(open_source):
    (record,) = records(open_source(document(matched("b.png", 1), matched("a.png", 1)), image_stands="after"))
    assert seen(record) == ["Cats. A cat sleeps.", b"pixels b", b"pixels a", "It wakes. The end."]


def test_an_image_may_stand_in_the_document_in_base64(open_source):
    inside = matched("gone.jpg", 0) | {"image_base64": base64.b64encode(b"pixels inside").decode()}
    nameless = {key: value for key, value in inside.items() if key != "image_name"}
    for info in (inside, nameless):
        (record,) = records(open_source(document(info), images=None))
        assert record.turns[0].parts[0] == ImagePart(ImageBytes(b"pixels inside"))


def test_images_that_are_not_similar_enough_are_left_out_and_told(open_source):
    value = document(matched("a.png", 1, 0.23), matched("b.png", 3, 0.24))
    (record,) = records(open_source(value, similarity={"at_least": 0.24}))
    assert seen(record) == ["Cats. A cat sleeps. It wakes.", b"pixels b", "The end."]
    (left_out,) = record.left_out
    assert left_out.cause == "filtered_similarity" and left_out.key == f"{record.key}#a.png"


def test_the_similarity_matrix_is_asked_where_an_image_has_no_similarity(open_source):
    bare = [{key: value for key, value in info.items() if key != "matched_sim"} for info in GOOD["image_info"]]
    value = document(*bare, similarity_matrix=[[0.0, 0.1, 0.9, 0.9], [0.0, 0.0, 0.0, 0.5]])
    (record,) = records(open_source(value, similarity={"at_least": 0.24}))
    assert seen(record) == ["Cats. A cat sleeps. It wakes.", b"pixels b", "The end."]
    assert outcomes(open_source(document(*bare), similarity={"at_least": 0.24})) == ["filtered_images"]


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (7, "not_an_object"),
        ({"image_info": []}, "not_text"),
        (document(matched("a.png", 0), texts=["Cats.", None]), "not_text"),
        (document(matched("a.png", 0), texts=["\ud800"]), "not_utf8"),
        (document(matched("a.png", 0), texts=[" ", "\n"]), "no_text"),
        (document(texts=[]), "no_text"),
        (document(image_info={"a": 1}), "bad_image_info"),
        (document("a.png"), "bad_image_info"),
        (document({"image_name": "a.png"}), "bad_image_info"),
        (document(matched("a.png", 4)), "bad_image_info"),
        (document(matched("a.png", -1)), "bad_image_info"),
        (document(matched("a.png", "1")), "bad_image_info"),
        (document(matched(None, 1)), "bad_image_info"),
        (document(matched("a.png", 1) | {"image_base64": 7}), "bad_image_info"),
        (document(matched("a.png", 1) | {"image_base64": "%%"}), "bad_base64"),
        (document(matched("a.png", 1) | {"image_base64": "né"}), "bad_base64"),
        (document(matched("a.png", 1) | {"image_base64": ""}), "empty_image"),
        (document(matched("none.png", 1)), "missing_image"),
        (document(matched("empty.png", 1)), "empty_image"),
        (document(matched("../documents.jsonl", 1)), "path_escapes"),
        (document(matched("https://example.org/a.png", 1)), "image_is_no_file"),
        (document(matched("a.png", 1, "high")), "not_a_number"),
        (document(), "filtered_images"),
    ],
)
def test_a_bad_document_is_skipped_by_cause_and_the_next_is_read(open_source, value, cause):
    source = open_source(value, GOOD, similarity={"at_least": 0.2})
    assert outcomes(source) == [cause, "good"]
    assert next(iter(records(source))).key.startswith(source.shards[0])


@st.composite
def placed_documents(draw):
    texts = draw(st.lists(st.sampled_from(["", " ", "a", " b ", "c d", "e\nf"]), max_size=6))
    places = draw(st.lists(st.integers(0, max(0, len(texts) - 1)), max_size=6)) if texts else []
    return texts, places


@given(placed_documents(), st.sampled_from(["before", "after"]))
def test_no_text_and_no_image_is_lost_and_each_image_stands_beside_its_sentence(drawn, stands):
    texts, places = drawn
    value = document(*(matched(str(number), place) for number, place in enumerate(places)), texts=texts)
    pieces = Mmc4Config(files="unused", image_stands=stands).pieces(value, "key")
    assert [piece for piece in pieces if isinstance(piece, str)] == texts
    images = [(at, piece) for at, piece in enumerate(pieces) if isinstance(piece, NamedImage)]
    assert sorted(int(image.name) for _, image in images) == list(range(len(places)))
    for at, image in images:
        before = sum(isinstance(piece, str) for piece in pieces[:at])
        assert before == places[int(image.name)] + (stands == "after")
