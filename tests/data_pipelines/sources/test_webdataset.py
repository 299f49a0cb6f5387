import json
import os
import pickle
import tarfile
from collections import Counter

import pytest
from pydantic import ValidationError

from data_pipelines.quota import QuotaExceededError, Skip, Tally, check_quota
from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.sources.source import records
from data_pipelines.sources.webdataset import WebDatasetConfig
from data_pipelines.storage import Storage
from tests.support.tiny_stream import pair, tar_bytes


def shard(tmp_path, data, **config):
    path = tmp_path / "00000.tar"
    path.write_bytes(data if isinstance(data, bytes) else tar_bytes(data))
    return WebDatasetConfig(shards=str(path), **config).open(Storage())


def outcomes(source):
    """Keys of good records and causes of skips, in order."""
    return [found.cause if isinstance(found, Skip) else found.key.rpartition(":")[2] for found in records(source)]


def test_a_pair_becomes_a_conversation_of_two_turns(tmp_path):
    source = shard(tmp_path, pair("000000017", " a red square \n", b"pixels"))
    path = str(tmp_path / "00000.tar")
    (record,) = records(source)
    image = ImagePart(ByteRange(path, 512, 6))
    asked, told = Turn("user", (image,), False), Turn("assistant", (TextPart("a red square"),), True)
    assert record == Record(f"{path}:000000017", (asked, told))
    assert Storage().read_range(image.source) == b"pixels"


def test_captions_come_from_a_field_of_the_json_member(tmp_path):
    described = json.dumps({"caption": "from json"}).encode()
    source = shard(tmp_path, [*pair("a", "from txt"), ("a.json", described)], caption="json:caption")
    (record,) = records(source)
    assert record.turns[1].parts == (TextPart("from json"),)


def test_a_prompt_is_picked_by_place(tmp_path):
    members = [member for index in range(20) for member in pair(f"{index:02d}", "text")]
    source = shard(tmp_path, members, prompts=("Describe it.", "What is it?"))
    asked = [record.turns[0].parts[1].text for record in records(source)]
    assert set(asked) == {"Describe it.", "What is it?"}
    assert asked == [record.turns[0].parts[1].text for record in records(source)]


def test_members_of_a_sample_come_in_any_order_and_number(tmp_path):
    members = [("x/a.txt", b"one"), ("x/a.json", b"{}"), ("x/a.PNG", b"1"), ("y/a.jpeg", b"2"), ("y/a.txt", b"two")]
    assert outcomes(shard(tmp_path, members)) == ["x/a", "y/a"]


def test_a_key_that_comes_again_is_another_sample(tmp_path):
    assert outcomes(shard(tmp_path, pair("a", "one") + pair("a", "two"))) == ["a", "a"]


GOOD = pair("good", "text")
JSON = "json:caption"


@pytest.mark.parametrize(
    ("members", "config", "cause"),
    [
        ([("bad.jpg", b"p")], {}, "missing_caption"),
        ([("bad.txt", b"t")], {}, "missing_image"),
        ([("README", b"t")], {}, "missing_image"),
        ([("bad.jpg", b""), ("bad.txt", b"t")], {}, "empty_image"),
        ([("bad.jpg", b"p"), ("bad.txt", b"\xff\xfe")], {}, "not_utf8"),
        ([("bad.jpg", b"p"), ("bad.txt", b" \n")], {}, "empty_caption"),
        ([*pair("bad", "t"), ("bad.pyd", b"\x80\x04.")], {}, "pickled_member"),
        ([*pair("bad", "t"), ("bad.features.pkl", b"\x80\x04.")], {}, "pickled_member"),
        ([*pair("bad", "t"), ("bad.pickle", b"\x80\x04.")], {}, "pickled_member"),
        (pair("../bad", "t"), {}, "path_escapes"),
        ([(f"bad.{number}", b"") for number in range(1001)], {}, "too_many_members"),
        (pair("/bad", "t"), {}, "path_escapes"),
        ([("bad.jpg", b"p"), ("bad.json", b"[1]")], {"caption": JSON}, "not_an_object"),
        ([("bad.jpg", b"p"), ("bad.json", b"{")], {"caption": JSON}, "bad_json"),
        ([("bad.jpg", b"p"), ("bad.json", b"[" * 100_000)], {"caption": JSON}, "bad_json"),
        ([("bad.jpg", b"p"), ("bad.json", b'{"caption": 3}')], {"caption": JSON}, "not_text"),
        ([("bad.jpg", b"p"), ("bad.json", b'{"caption": null}')], {"caption": JSON}, "missing_caption"),
        ([("bad.jpg", b"p"), ("bad.json", b'{"caption": "\\ud800"}')], {"caption": JSON}, "not_utf8"),
    ],
)
def test_a_bad_sample_is_skipped_by_cause_and_the_next_is_read(tmp_path, members, config, cause):
    good = [("good.jpg", b"p"), ("good.txt", b"t"), ("good.json", b'{"caption": "t"}')]
    source = shard(tmp_path, members + good, **config)
    assert outcomes(source) == [cause, "good"]
    skip = next(iter(records(source)))
    assert skip.key.startswith(str(tmp_path / "00000.tar")) and skip.detail


class Opened:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "json", "txt", "jpg", "npy", "pth", "cls"])
def test_nothing_is_unpickled(tmp_path, extension):
    pickled = pickle.dumps(Opened(tmp_path / "opened"))
    source = shard(tmp_path, [*pair("a", "t"), (f"a.{extension}", pickled), *GOOD], caption=(JSON, "txt"))
    for record in records(source):
        if isinstance(record, Record):
            image = Storage().read_range(record.turns[0].parts[0].source)
            assert image.startswith(b"pixels") or image == pickled
    assert not (tmp_path / "opened").exists()
    pickle.loads(pickled)
    assert (tmp_path / "opened").exists()


def test_a_link_is_refused_with_its_sample(tmp_path):
    link = tarfile.TarInfo("bad.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    assert outcomes(shard(tmp_path, link.tobuf() + tar_bytes([("bad.txt", b"t"), *GOOD]))) == ["not_a_file", "good"]


WHOLE = tar_bytes(pair("a", "one", b"p" * 700) + pair("b", "two", b"q" * 700))


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, ["truncated"]),
        (100, ["truncated"]),
        (1000, ["truncated"]),
        (1536, ["truncated"]),
        (1536 + 512 + 3, ["a", "truncated"]),
        (2560, ["a", "truncated"]),
        (2560 + 700, ["a", "truncated"]),
        (len(WHOLE), ["a", "b"]),
    ],
)
def test_a_cut_tar_loses_its_rest_and_that_is_counted_once(tmp_path, length, expected):
    assert outcomes(shard(tmp_path, WHOLE[:length])) == expected


def test_a_walk_goes_on_from_any_place_even_behind_a_break(tmp_path):
    source = shard(tmp_path, WHOLE[:2560])
    whole = list(source.walk(0))
    for index, entry in enumerate(whole):
        assert next(source.walk(0, entry.place)) == entry
        assert list(source.walk(0, entry.following)) == whole[index + 1 :]


def test_an_empty_shard_list_names_the_pattern(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing-\*\.tar"):
        WebDatasetConfig(shards=str(tmp_path / "nothing-*.tar")).open(Storage())


def described(key, text="text", **metadata):
    return [*pair(key, text), (f"{key}.json", json.dumps(metadata).encode())]


def test_samples_that_no_filter_wants_are_counted_by_field(tmp_path):
    members = [
        *described("good", width=300, height=200, similarity=0.31, NSFW="UNLIKELY"),
        *described("narrow", width=900, height=200, similarity=0.31, NSFW="UNLIKELY"),
        *described("small", width=100, height=100, similarity=0.31, NSFW="UNLIKELY"),
        *described("other", width=300, height=200, similarity=0.1, NSFW="UNLIKELY"),
        *described("unsafe", width=300, height=200, similarity=0.31, NSFW="NSFW"),
        *described("unknown", width=300, height=200, NSFW="UNLIKELY"),
        *described("text", width="300", height=200, similarity=0.31, NSFW="UNLIKELY"),
        *pair("bare", "text"),
        *pair("broken", "text"),
        ("broken.json", b"[1]"),
    ]
    filters = {
        "width": {"at_least": 128},
        "aspect_ratio": {"at_most": 3},
        "similarity": {"at_least": 0.28, "at_most": 1},
        "NSFW": {"one_of": ["UNLIKELY", "UNSURE"]},
    }
    assert outcomes(shard(tmp_path, members, filters=filters)) == [
        "good",
        "filtered_aspect_ratio",
        "filtered_width",
        "filtered_similarity",
        "filtered_NSFW",
        "filtered_similarity",
        "not_a_number",
        "missing_metadata",
        "not_an_object",
    ]


def test_no_quota_counts_what_is_filtered():
    tally = Tally(1000, Counter(filtered_width=900, bad_json=9))
    check_quota([tally], skip_quota=0.01, unfit_quota=0.0)
    with pytest.raises(QuotaExceededError, match=r"11 of 1000 records are bad \(bad_json 11\)"):
        check_quota([tally, Tally(0, Counter(bad_json=2))], skip_quota=0.01, unfit_quota=0.0)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "no bound"),
        ({"at_least": 2, "at_most": 1}, "exceeds"),
        ({"one_of": ["a"], "at_most": 1}, "does not go with"),
    ],
)
def test_a_filter_must_make_sense(bounds, message):
    with pytest.raises(ValidationError, match=message):
        WebDatasetConfig(shards="x.tar", filters={"width": bounds})


def test_of_several_captions_the_first_that_is_there_counts(tmp_path):
    members = [
        *described("both", text="raw", recaption="better"),
        *described("raw", text="raw"),
        *described("empty", text="raw", recaption=" "),
        *pair("bare", "raw"),
        ("wrong.jpg", b"p"),
        ("wrong.json", b'{"recaption": 3}'),
    ]
    source = shard(tmp_path, members, caption=("json:recaption", "txt"))
    *texts, wrong = [found if isinstance(found, Skip) else found.turns[1].parts[0].text for found in records(source)]
    assert texts == ["better", "raw", "raw", "raw"] and wrong.cause == "not_text"


def test_a_run_without_filters_has_the_fingerprint_that_it_always_had(tmp_path):
    assert "filters" not in shard(tmp_path, GOOD).fingerprint()
    assert shard(tmp_path, GOOD, filters={"width": {"at_least": 1}}).fingerprint()["filters"]
