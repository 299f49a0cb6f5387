"""A record of any kind is the same after a tar, but for its key and the places of its images."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, Record, ReferenceScores, TextPart, Turn
from data_pipelines.shards import TAR_END, tar_member
from data_pipelines.sources.choice import source_of_path
from data_pipelines.sources.record_json import members_of
from data_pipelines.sources.records import RecordsConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage
from tests.support.seen_records import seen
from tests.support.tiny_stream import tar_bytes

PIXELS = b"\xff\xd8\xffone\x89PNGtwo"
IMAGES = [ImagePart(ByteRange("pixels", 0, 6)), ImagePart(ByteRange("pixels", 6, 7)), ImagePart(ByteRange("pixels"))]
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
PARTS = st.sampled_from(IMAGES) | st.builds(TextPart, TEXTS)
TURNS = st.builds(
    Turn, st.sampled_from(["system", "user", "assistant"]), st.lists(PARTS, max_size=4).map(tuple), st.booleans()
)
SCORES = st.builds(
    ReferenceScores, st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.tuples(st.integers(0), st.integers(0))
)
RECORDS = st.builds(
    Record, TEXTS, st.lists(TURNS, min_size=1, max_size=4).map(tuple), st.none() | TURNS, st.none() | SCORES
)


def read_pixels(place: ByteRange) -> bytes:
    return PIXELS[place.offset :][: place.length]


@settings(max_examples=100, deadline=None)
@given(written=st.lists(RECORDS, min_size=1, max_size=4))
def test_any_record_is_read_as_it_was_written(written):
    with tempfile.TemporaryDirectory() as folder:
        shard, storage = Path(folder, "a.tar"), Storage()
        members = [
            tar_member(f"{number:04d}.{name}", data)
            for number, record in enumerate(written)
            for name, data in members_of(record, read_pixels)
        ]
        shard.write_bytes(b"".join(members) + TAR_END)
        found = list(records(RecordsConfig(shards=str(shard)).open(storage)))
        assert [record.key for record in found] == [f"{shard}:{number:04d}" for number in range(len(written))]
        assert [seen(record, storage.read_range) for record in found] == [seen(each, read_pixels) for each in written]


def test_what_stands_in_the_tar_never_changes():
    question = Turn("user", (IMAGES[0], TextPart("Côté?"), IMAGES[1], IMAGES[0]), learn=False)
    answer, worse = (Turn("assistant", (TextPart(text),), learn) for text, learn in (("Yes.", True), ("No.", False)))
    record = Record("from:7", (question, answer), worse, ReferenceScores(-1.5, -2.25, (9, 8)))
    (_, said), *images = members_of(record, read_pixels)
    assert images == [("0.jpg", b"\xff\xd8\xffone"), ("1.png", b"\x89PNGtwo")]
    assert said.decode() == (
        '{"key":"from:7","turns":[{"role":"user","parts":[{"source":{"path":"0.jpg"}},{"text":"Côté?"},'
        '{"source":{"path":"1.png"}},{"source":{"path":"0.jpg"}}],"learn":false},'
        '{"role":"assistant","parts":[{"text":"Yes."}],"learn":true}],'
        '"rejected":{"role":"assistant","parts":[{"text":"No."}],"learn":false},'
        '"reference":{"chosen":-1.5,"rejected":-2.25,"tokens":[9,8]}}'
    )


def said(**changes) -> bytes:
    turn = {"role": "user", "parts": [{"source": {"path": "0.jpg"}}], "learn": True}
    return json.dumps({"key": "k", "turns": [turn]} | changes).encode()


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("bad.0.jpg", b"p")], "missing_record"),
        ([("bad.json", said())], "missing_image"),
        ([("bad.json", said()), ("bad.0.jpg", b"")], "empty_image"),
        ([("bad.json", said(turns=[]))], "bad_record"),
        ([("bad.json", said(turns=[{"role": "robot", "parts": [], "learn": True}]))], "bad_record"),
        ([("bad.json", said(turns=[{"role": "user", "parts": [{"sound": 1}], "learn": True}]))], "bad_record"),
        ([("bad.json", said(turns=[{"role": "user", "parts": [], "learn": "yes"}]))], "bad_record"),
        ([("bad.json", b"[1]")], "bad_record"),
        ([("bad.json", b"{")], "bad_json"),
        ([("bad.json", b'"\xff"')], "bad_json"),
        ([("bad.json", said(key="\ud800"))], "bad_json"),
        ([("bad.json", b"[" * 100_000)], "bad_json"),
        (
            [
                ("bad.json", said(reference={"chosen": float("nan"), "rejected": 0, "tokens": [1, 2]})),
                ("bad.0.jpg", b"p"),
            ],
            "bad_reference",
        ),
        ([("../bad.json", said())], "path_escapes"),
        ([("bad.json", said()), ("bad.0.jpg", b"p"), ("bad.pickle", b"\x80\x04.")], "pickled_member"),
    ],
)
def test_a_bad_record_is_skipped_by_cause_and_the_next_is_read(tmp_path, members, cause):
    (tmp_path / "a.tar").write_bytes(tar_bytes([*members, ("good.json", said()), ("good.0.jpg", b"p")]))
    bad, good = records(RecordsConfig(shards=str(tmp_path / "a.tar")).open(Storage()))
    assert isinstance(bad, Skip) and bad.cause == cause and bad.detail
    assert isinstance(good, Record) and good.key == f"{tmp_path}/a.tar:good"


def test_a_path_to_shards_of_records_is_known_as_such_although_the_first_is_bad(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes([("0.json", b"{"), ("1.json", said()), ("1.0.jpg", b"p")]))
    for path in (tmp_path, tmp_path / "a.tar"):
        assert isinstance(source_of_path(str(path)), RecordsConfig)
