import json

import pytest

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, TextPart
from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage
from tests.support.tiny_stream import tar_bytes


def said(*values):
    return [{"from": "gpt" if index % 2 else "human", "value": value} for index, value in enumerate(values)]


GOOD = {"id": "1", "image": "a.png", "conversations": said("<image>\nWhat is it?", "A cat.", "And this?", "Nothing.")}


@pytest.fixture
def open_source(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"pixels")
    (images / "b.png").write_bytes(b"more pixels")
    (images / "empty.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "around").symlink_to(images / "around")

    def open_with(records_or_bytes, name="chats.json", **config):
        data = records_or_bytes if isinstance(records_or_bytes, bytes) else json.dumps(records_or_bytes).encode()
        (tmp_path / name).write_bytes(data)
        return LlavaJsonConfig(**({"files": str(tmp_path / name), "images": str(images)} | config)).open(Storage())

    return open_with


def outcomes(source):
    return [found.cause if isinstance(found, Skip) else int(found.key.rpartition(":")[2]) for found in records(source)]


def test_a_conversation_becomes_turns_and_assistants_are_learned(open_source, tmp_path):
    (record,) = records(open_source([GOOD]))
    image = ImagePart(ByteRange(str(tmp_path / "images" / "a.png"), 0, 6))
    assert record.turns[0].parts == (image, TextPart("What is it?"))
    assert [(turn.role, turn.learn) for turn in record.turns] == [("user", False), ("assistant", True)] * 2


def test_images_stand_where_their_marks_stand(open_source):
    value = {"image": ["a.png", "b.png"], "conversations": said("Compare <image>\nwith\n<image> now", "Same.")}
    (record,) = records(open_source([value]))
    first, _, second, _, last = record.turns[0].parts
    assert (first.text, last.text) == ("Compare", "now") and isinstance(second, TextPart)


def test_text_alone_and_a_system_turn(open_source):
    value = {"conversations": [{"from": "system", "value": "Be kind."}, *said("Hello", "Hi")]}
    (record,) = records(open_source([value]))
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant"]


@pytest.mark.parametrize("name", ["chats.json", "chats.jsonl"])
def test_every_layout_gives_the_same_records(open_source, name):
    values = [dict(GOOD, id=f'{number} "quoted" \\ {{[') for number in range(9)]
    lines = [json.dumps(value) for value in values]
    layouts = ["\n".join(lines), "\r\n\r\n".join(lines) + "\r\n"]
    if name.endswith(".json"):
        layouts = [json.dumps(values), json.dumps(values, indent=3), "\ufeff [\n" + ",\n".join(lines) + "\n]\n"]
    for layout in layouts:
        assert outcomes(open_source(layout.encode(), name)) == list(range(9))


def test_images_come_from_tars_too(open_source, tmp_path):
    for shard in range(2):
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes([(f"coco/{shard}.jpg", b"pixels %d" % shard)]))
    values = [dict(GOOD, image=f"coco/{shard}.jpg") for shard in (1, 0, 7)]
    source = open_source(values, images=None, image_shards=str(tmp_path / "*.tar"))
    found = list(records(source))
    assert [Storage().read_range(record.turns[0].parts[0].source) for record in found[:2]] == [b"pixels 1", b"pixels 0"]
    assert found[2].cause == "missing_image"


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (7, "not_an_object"),
        (None, "not_an_object"),
        ("text", "not_an_object"),
        ([], "not_an_object"),
        ({"id": "1"}, "not_a_conversation"),
        (dict(GOOD, image="../secret.png"), "path_escapes"),
        (dict(GOOD, image="/etc/hostname"), "path_escapes"),
        (dict(GOOD, image="link.png"), "path_escapes"),
        (dict(GOOD, image="https://example.org/a.png"), "image_is_no_file"),
        (dict(GOOD, image="none.png"), "missing_image"),
        (dict(GOOD, image="a.png/b.png"), "missing_image"),
        (dict(GOOD, image="."), "path_escapes"),
        (dict(GOOD, image="a\0.png"), "path_escapes"),
        (dict(GOOD, image="x" * 300), "missing_image"),
        (dict(GOOD, image="a/" * 3000), "missing_image"),
        (dict(GOOD, image="\ud800.png"), "missing_image"),
        (dict(GOOD, image="around/around.png"), "missing_image"),
        (dict(GOOD, image="empty.png"), "empty_image"),
        (dict(GOOD, image=["a.png", "b.png"]), "image_count"),
        (dict(GOOD, image=None), "image_count"),
        (dict(GOOD, image={"bytes": 1}), "not_text"),
        (dict(GOOD, conversations=said("Hi", "<image>")), "image_in_answer"),
        (dict(GOOD, conversations=said("<image>", " ")), "empty_turn"),
        (dict(GOOD, conversations=said("<image>", 3)), "not_text"),
        (dict(GOOD, conversations=said("<image>")), "no_answer"),
        (dict(GOOD, conversations=said("<image>", "a")[::-1]), "turn_order"),
        (dict(GOOD, conversations=[{"from": "martian", "value": "<image>"}]), "unknown_role"),
        (dict(GOOD, conversations=said("<image>", "\ud800")), "not_utf8"),
    ],
)
def test_a_bad_record_is_skipped_by_cause_and_the_next_is_read(open_source, value, cause):
    assert outcomes(open_source([value, GOOD])) == [cause, 1]


@pytest.mark.parametrize("line", [b"3", b'"text"', b"{", b'{"a": "\xff"}', b"[" * 100_000])
def test_a_line_that_is_no_object_is_skipped(open_source, line):
    good = json.dumps(GOOD).encode()
    first, second = outcomes(open_source(good + b"\n" + line + b"\n" + good, "chats.jsonl"))[1:]
    assert first in ("not_an_object", "bad_json", "not_utf8") and second == 2


@pytest.mark.parametrize("cut", [1, 20, 300, 600])
def test_a_cut_file_loses_its_rest_and_that_is_counted_once(open_source, cut):
    data = json.dumps([GOOD, GOOD, GOOD]).encode()
    found = outcomes(open_source(data[:-cut]))
    assert found[-1] == "truncated" and found[:-1] == list(range(len(found) - 1))


def test_the_index_is_kept_and_renewed_when_the_file_changes(open_source, tmp_path):
    open_source([GOOD], index_cache=str(tmp_path / "cache"))
    (index,) = (tmp_path / "cache").iterdir()
    written = index.stat().st_mtime_ns
    assert outcomes(open_source([GOOD], index_cache=str(tmp_path / "cache"))) == [0]
    assert outcomes(open_source([GOOD] * 3, index_cache=str(tmp_path / "cache"))) == [0, 1, 2]
    assert index.stat().st_mtime_ns == written


def test_a_remote_file_is_refused():
    with pytest.raises(ValueError, match="copy the file here first"):
        LlavaJsonConfig(files="gs://bucket/chats.json").open(Storage())


def test_two_places_for_images_are_an_error():
    with pytest.raises(ValueError, match="from a folder or from tars"):
        LlavaJsonConfig(files="a.json", images="folder", image_shards="a.tar")
