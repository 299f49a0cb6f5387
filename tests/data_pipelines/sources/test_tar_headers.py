import io
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.sources.tar_headers import Break, Member, members
from tests.support.tiny_stream import pair, tar_bytes

LONG = "folder/" * 20 + "picture.jpg"


def read_from(data):
    return lambda offset, length: data[offset : offset + length]


def walk(data, start=0):
    return list(members(read_from(data), len(data), start))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("names", [["a.jpg", "a.txt"], [LONG, LONG + ".txt"], ["bücher/ñ.jpg", "\u65e5.txt"]])
def test_members_are_where_tarfile_finds_them(format, names):
    data = tar_bytes([(name, name.encode() * 200) for name in names], format)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(info.name, info.offset_data, info.size, info.offset) for info in tar]
    assert [(found.name, found.offset, found.size, found.begin) for found in walk(data)] == expected


def test_a_walk_starts_at_any_member():
    data = tar_bytes([("a.jpg", b"1" * 600), (LONG, b"2"), ("c.txt", b"3")], tarfile.PAX_FORMAT)
    whole = walk(data)
    assert walk(data, whole[1].begin) == whole[1:]
    assert walk(data, whole[0].following) == whole[1:]


def test_a_size_in_base_256_is_understood():
    info = tarfile.TarInfo("huge.jpg")
    info.size = 9 * 2**30
    header = info.tobuf(tarfile.GNU_FORMAT)
    reads = members(lambda offset, length: header[offset : offset + length], 2**40)
    assert next(reads) == Member(0, "huge.jpg", 512, 9 * 2**30, 512 + 9 * 2**30, None)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_what_is_no_file_is_refused(kind):
    info = tarfile.TarInfo("a.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    assert [found.refusal for found in walk(info.tobuf() + bytes(1024))] == ["not_a_file"]


@pytest.mark.parametrize("name", ["/etc/passwd.txt", "../a.txt", "a/../../b.txt"])
def test_a_name_that_leaves_its_folder_is_refused(name):
    assert [found.refusal for found in walk(tar_bytes([(name, b"x")]))] == ["path_escapes"]


def test_a_name_without_end_is_refused_and_cut():
    (found,) = walk(tar_bytes([("x" * 5000, b"x")], tarfile.GNU_FORMAT))
    assert found.refusal == "name_too_long" and len(found.name) < 200


def test_directories_and_leading_dots_do_not_matter():
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    data = folder.tobuf() + tar_bytes([("./folder/a.jpg", b"x")])
    assert [found.name for found in walk(data)] == ["folder/a.jpg"]


WHOLE = tar_bytes(pair("a", "one", b"p" * 700) + pair("b", "two"))


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "truncated"),
        (WHOLE[:300], "truncated"),
        (WHOLE[:900], "truncated"),
        (WHOLE[: walk(WHOLE)[2].begin], "truncated"),
        (WHOLE[:1536] + b"\xff" + WHOLE[1537:], "bad_header"),
        (b"\x1f\x8b" + bytes(range(256)) * 4, "bad_header"),
        (WHOLE + WHOLE, "data_after_end"),
    ],
)
def test_a_tar_that_breaks_off_says_where(data, cause):
    *_, last = walk(data)
    assert isinstance(last, Break) and last.cause == cause


def test_a_compressed_shard_is_called_so():
    assert "compressed" in walk(b"\x1f\x8b" + bytes(range(256)) * 4)[-1].detail


SEEDS = [
    tar_bytes([("a.jpg", b"1" * 600), (LONG, b"2"), ("c.txt", b"3")], format)
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
]


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 11000),
)
def test_damaged_bytes_never_crash_or_hang(data, changes, length):
    damaged = bytearray(data[:length])
    for place, value in changes:
        if place < len(damaged):
            damaged[place] = value
    found = walk(bytes(damaged))
    assert len(found) <= len(damaged) // 512 + 1
    for member in found:
        assert isinstance(member, Break) or member.offset + member.size <= len(damaged)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(b"xgLK"),
    payload=st.binary(max_size=40) | st.text("0123456789 path=size\n", max_size=40).map(str.encode),
)
@example(kind=ord("x"), payload=b"123")
def test_any_extended_header_is_followed_or_refused(kind, payload):
    info = tarfile.TarInfo("extended")
    info.type, info.size = bytes([kind]), len(payload)
    walk(info.tobuf() + payload.ljust(512, b"\0") + SEEDS[0])


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=3000))
def test_random_bytes_never_crash_or_hang(data):
    assert len(walk(data)) <= len(data) // 512 + 1
