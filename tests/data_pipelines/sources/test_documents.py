"""What is kept of interleaved documents, and documents in tars."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImageBytes, ImagePart, TextPart
from data_pipelines.sources.documents import DocumentOptions, NamedImage, record_of
from data_pipelines.sources.mmc4 import Mmc4Config
from data_pipelines.sources.obelics import ObelicsConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage
from tests.support.tiny_stream import tar_bytes

A, B, C, MISSING = (NamedImage(name) for name in ("a", "b", "c", "missing"))


def find(image):
    if image.name == "missing":
        return Skip("missing_image", "key", "it is not there")
    return ImageBytes(image.name.encode())


def kept(*pieces, **options):
    """What is kept of a document: texts, and the names of images; or why it is skipped."""
    record = record_of(list(pieces), DocumentOptions(**options), "key", find)
    if isinstance(record, Skip):
        return record.cause
    return [part.text if isinstance(part, TextPart) else part.source.data for part in record.turns[0].parts]


def test_only_so_many_images_are_kept_and_the_text_goes_on():
    record = record_of(["one", A, "two", B, "three", C], DocumentOptions(most_images=1), "key", find)
    assert kept("one", A, "two", B, "three", C, most_images=1) == ["one", b"a", "two three"]
    assert [(skip.cause, skip.key) for skip in record.left_out] == [
        ("filtered_most_images", "key#b"),
        ("filtered_most_images", "key#c"),
    ]


def test_documents_with_few_images_are_kept_if_asked():
    assert kept("text") == "filtered_images"
    assert kept("text", least_images=0) == ["text"]
    assert kept("text", A, least_images=2) == "filtered_images"


def test_documents_are_kept_by_their_number_of_sentences():
    bounds = {"at_least": 2, "at_most": 3}
    found = [kept(A, *["text"] * count, " ", sentences=bounds) for count in (1, 2, 3, 4)]
    assert [isinstance(each, list) for each in found] == [False, True, True, False]
    assert found[0] == "filtered_sentences"


def test_a_missing_image_costs_its_document_or_itself():
    assert kept("one", A, MISSING, "two") == "missing_image"
    assert kept("one", A, MISSING, "two", missing_images="leave_out") == ["one", b"a", "two"]
    record = record_of([A, MISSING, "two"], DocumentOptions(missing_images="leave_out"), "key", find)
    assert [(skip.cause, skip.key) for skip in record.left_out] == [("filtered_missing_image", "key#missing")]
    assert kept("one", MISSING, missing_images="leave_out") == "filtered_images"


def test_text_before_the_first_image_is_not_learned_if_asked():
    def learned(*pieces, **options):
        record = record_of(list(pieces), DocumentOptions(learn_before_image=False, **options), "key", find)
        if isinstance(record, Skip):
            return record.cause
        return [part.text for part in record.turns[0].parts if isinstance(part, TextPart) and part.learn]

    assert learned("one", "two", A, "three", B, "four") == ["three", "four"]
    assert learned(A, "one", B, "two") == ["one", "two"]
    assert learned("one", least_images=0) == ["one"]
    assert learned("one", A) == "filtered_learned_text"


TEXTS = st.sampled_from(["x", " y ", "", " "])
PIECES = st.lists(st.one_of(TEXTS, st.sampled_from([A, B, MISSING])), max_size=10)


@given(PIECES, st.integers(0, 2), st.one_of(st.none(), st.integers(2, 3)), st.booleans())
def test_every_text_and_every_image_is_kept_or_told_of(pieces, least, most, learn):
    options = DocumentOptions(
        least_images=least, most_images=most, missing_images="leave_out", learn_before_image=learn
    )
    record = record_of(pieces, options, "key", find)
    if isinstance(record, Skip):
        assert record.cause in ("no_text", "filtered_images", "filtered_learned_text")
        return
    parts = record.turns[0].parts
    images = [part for part in parts if isinstance(part, ImagePart)]
    texts = " ".join(part.text for part in parts if isinstance(part, TextPart))
    assert texts.split() == [piece.strip() for piece in pieces if isinstance(piece, str) and piece.strip()]
    assert len(images) + len(record.left_out) == sum(isinstance(piece, NamedImage) for piece in pieces)
    assert least <= len(images) <= (most or len(pieces))
    assert not any(isinstance(one, TextPart) and isinstance(two, TextPart) for one, two in pairwise(parts))


def described(*images):
    info = [{"image_name": name, "matched_text_index": 0, "matched_sim": 1.0} for name in images]
    return json.dumps({"text_list": ["Cats."], "image_info": info}).encode()


def open_tar(tmp_path, members, kind=Mmc4Config, **config):
    (tmp_path / "0.tar").write_bytes(members if isinstance(members, bytes) else tar_bytes(members))
    return kind(files=str(tmp_path / "0.tar"), **config).open(Storage())


def outcomes(source):
    return [found.cause if isinstance(found, Skip) else found.key.rpartition(":")[2] for found in records(source)]


def test_images_of_a_document_in_a_tar_are_beside_it_or_elsewhere(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "far.png").write_bytes(b"far")
    members = [
        ("x/1.json", described("0.png", "1.B.png", "far.png")),
        ("x/1.0.png", b"first"),
        ("x/1.b.png", b"second"),
    ]
    (record,) = records(open_tar(tmp_path, members, images=str(tmp_path / "images")))
    sources = [part.source for part in record.turns[0].parts if isinstance(part, ImagePart)]
    assert all(isinstance(source, ByteRange) for source in sources)
    assert [Storage().read_image(source) for source in sources] == [b"first", b"second", b"far"]
    assert record.key == f"{tmp_path / '0.tar'}:x/1"


def test_images_of_obelics_are_beside_their_document_by_name(tmp_path):
    value = {"images": ["https://example.org/a", None], "texts": [None, "A cat."], "names": ["0.jpg", None]}
    members = [("1.json", json.dumps(value).encode()), ("1.0.jpg", b"pixels")]
    (record,) = records(open_tar(tmp_path, members, ObelicsConfig, image_names="names"))
    assert Storage().read_image(record.turns[0].parts[0].source) == b"pixels"


GOOD = [("good.json", described("jpg")), ("good.jpg", b"pixels")]


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("bad.jpg", b"p")], "missing_document"),
        ([("bad.json", b"{")], "bad_json"),
        ([("bad.json", b"\xff")], "not_utf8"),
        ([("bad.json", b"[]")], "not_an_object"),
        ([("bad.json", described("jpg")), ("bad.jpg", b"")], "empty_image"),
        ([("bad.json", described("json"))], "missing_image"),
        ([("bad.json", described("good.jpg"))], "missing_image"),
        ([("bad.json", described("jpg")), ("bad.pkl", b"")], "pickled_member"),
        ([("../bad.json", described("jpg"))], "path_escapes"),
    ],
)
def test_a_bad_document_in_a_tar_is_skipped_by_cause_and_the_next_is_read(tmp_path, members, cause):
    source = open_tar(tmp_path, members + GOOD)
    assert outcomes(source) == [cause, "good"]
    assert next(iter(records(source))).key.startswith(source.shards[0])


def test_a_cut_tar_loses_its_rest_and_that_is_counted_once(tmp_path):
    whole = tar_bytes([*GOOD, ("last.json", described("jpg")), ("last.jpg", b"p" * 700)])
    assert outcomes(open_tar(tmp_path, whole)) == ["good", "last"]
    assert outcomes(open_tar(tmp_path, whole[: 4 * 512 + 100])) == ["good", "truncated"]


@pytest.mark.parametrize("tars", [True, False])
def test_an_entry_is_found_again_by_its_place(tmp_path, tars):
    if tars:
        source = open_tar(tmp_path, [*GOOD, ("next.json", described("jpg")), ("next.jpg", b"other")])
    else:
        (tmp_path / "0.jsonl").write_bytes(b"\n".join([described("a"), described("b")]))
        source = Mmc4Config(files=str(tmp_path / "0.jsonl"), missing_images="leave_out", least_images=0).open(Storage())
    entries = list(source.walk(0))
    assert len(entries) == 2
    for entry in entries:
        assert source.read(source.locate(0, entry.place)) == source.read(entry)
    assert list(source.walk(0, entries[0].following)) == entries[1:]


def test_what_is_kept_belongs_to_the_fingerprint(tmp_path):
    for source in (open_tar(tmp_path, GOOD), open_tar(tmp_path, GOOD, images=str(tmp_path))):
        assert source.fingerprint()["most_images"] is None and str(tmp_path) not in json.dumps(source.fingerprint())
    assert open_tar(tmp_path, GOOD).fingerprint() != open_tar(tmp_path, GOOD, most_images=3).fingerprint()


def test_config_that_cannot_be_meant_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="least_images 3 exceeds most_images 2"):
        Mmc4Config(files="a.jsonl", least_images=3, most_images=2)
    for name in ("a.tar", "b.jsonl"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="both tars and others"):
        Mmc4Config(files=str(tmp_path / "*")).open(Storage())
    with pytest.raises(FileNotFoundError, match="image folder"):
        Mmc4Config(files=str(tmp_path / "b.jsonl"), images=str(tmp_path / "none")).open(Storage())
