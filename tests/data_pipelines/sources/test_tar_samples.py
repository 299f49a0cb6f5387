"""What is read at once of headers that look alike is what is told of each of them alone."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources.tar_headers import Break, members
from data_pipelines.sources.tar_samples import MEMBERS_LIMIT, PICKLED, TarSample, samples
from tests.support.mutations import repaired_tar
from tests.support.random_tars import tars
from tests.support.tiny_stream import tar_bytes


def read_from(data):
    return lambda offset, length: data[offset : offset + length]


def walk(data, start=0, block=None):
    def ahead(offset, place):
        return data[place : max(offset + 512, place + block)], place

    return list(samples(read_from(data), len(data), start, None if block is None else ahead))


def one_by_one(data, start=0):
    """The samples by the headers of `members`, none of which is told by one before it."""
    found: list[TarSample | Break] = []
    for member in members(read_from(data), len(data), start):
        last = found[-1] if found else None
        if isinstance(member, Break):
            if isinstance(last, TarSample):
                last.at_break = True
            found.append(member)
            break
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = folder + slash + stem, extension.lower()
        if not isinstance(last, TarSample) or key != last.key or extension in last.members:
            last = TarSample(key, member.begin, member.following, {}, None)
            found.append(last)
        last.following = member.following
        if len(last.members) == MEMBERS_LIMIT:
            last.refusal = last.refusal or ("too_many_members", f"more than {MEMBERS_LIMIT} members of one key")
            continue
        last.members[extension] = member.offset, member.size
        if member.refusal is not None:
            last.refusal = last.refusal or (member.refusal, f"member {member.name!r}")
        elif extension.rpartition(".")[2] in PICKLED:
            last.refusal = last.refusal or ("pickled_member", f"member {member.name!r} is never unpickled")
    return found


NAMES = st.sampled_from(
    [f"{key}.{ending}" for key in ("00", "01", "02") for ending in ("jpg", "txt", "json")] * 4
    + ["./00.jpg", "d.x/00.JPG", "../x.jpg", "/a.jpg", "a..jpg", "00.pkl", "00.a.pkl", ".jpg", "d/.jpg", "00", "00."]
    + ["y" * 78 + ".txt", "y" * 90 + ".jpg", "x" * 100, "d/" * 60 + "00.jpg", "é.jpg", "-.jpg", "a/../00.txt"]
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 30 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE])
TIMES = st.sampled_from([0, 17e8, 1700000000.1234, 1700000000.12])
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
FIELDS = st.sampled_from([0, 1, 2, 99, 100, 101, 124, 134, 135, 136, 147, 148, 153, 154, 155, 156, 257, 263, 345, 400])


@st.composite
def alike(draw):
    """Tars most of whose headers look alike, some of them with a field that was changed and a checksum that fits it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=draw(FORMATS)) as tar:
        for name, kind, size, time in draw(st.lists(st.tuples(NAMES, KINDS, st.integers(0, 1100), TIMES), max_size=16)):
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.size = kind, time, size if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            tar.addfile(info, io.BytesIO(b"\xff" * info.size))
    data = bytearray(buffer.getvalue())
    for block, field, value in draw(st.lists(st.tuples(st.integers(0, 60), FIELDS, st.integers(0, 255)), max_size=3)):
        if 512 * block + field < len(data):
            data[512 * block + field] = value
    changed = bytes(data) if draw(st.booleans()) else repaired_tar(bytes(data))
    return changed[: draw(st.integers(0, len(changed)) | st.just(len(changed)))]


@settings(max_examples=300, deadline=None)
@given(data=alike() | tars(), block=st.integers(1, 6000))
def test_samples_are_those_of_the_headers_one_by_one_however_they_are_read(data, block):
    expected = one_by_one(data)
    assert walk(data) == expected
    assert walk(data, block=block) == expected
    for found in expected[:4]:
        if isinstance(found, TarSample):
            assert walk(data, found.place) == one_by_one(data, found.place)
            assert walk(data, found.following, block) == one_by_one(data, found.following)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("time", [0, 1700000000.125])
def test_members_are_where_tarfile_finds_them(format, time):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for number in range(40):
            for ending, size in (("jpg", 700 + number), ("txt", number % 3), ("json", 90)):
                info = tarfile.TarInfo(f"part/{number:05d}.{ending}")
                info.size, info.mtime = size, time + number
                tar.addfile(info, io.BytesIO(bytes(size)))
    data = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    found = walk(data)
    assert [sample.key for sample in found] == [f"part/{number:05d}" for number in range(40)]
    assert [
        (f"{sample.key}.{ending}", *place) for sample in found for ending, place in sample.members.items()
    ] == expected


@pytest.mark.parametrize("names", [[f"x{number}" for number in range(1500)], ["jpg", "txt", "n" * 21]])
def test_a_key_of_very_many_members_is_refused_at_the_same_one(names):
    first = [(f"{key}.{name}", b"") for key in "ab" for name in names]
    data = tar_bytes(first)
    assert walk(data) == one_by_one(data)


def changed(data: bytes, block: int, field: int, value: bytes) -> bytes:
    """The tar with other bytes in a header, whose checksum fits again."""
    header = bytearray(data[512 * block : 512 * block + 512])
    header[field : field + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[: 512 * block] + bytes(header) + data[512 * block + 512 :]


PAIRS = tar_bytes([(f"{number}.{ending}", b"x") for number in range(4) for ending in ("jpg", "txt")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (124, b"0000000_001\0"),
        (124, b"+0000000001\0"),
        (124, b"00000000008\0"),
        (124, b"0000000001 \0"),
        (124, b"\x80" + bytes(10) + b"\1"),
        (124, b"77777777777\0"),
        (0, b"n" * 80 + b".jpg" + b"m" * 16),
        (0, b"3.txt" + b"m" * 60),
        (0, bytes(100)),
        (0, b"n" * 100 + b"0.jpg\0"),
        (0, b"\xff.jpg\0"),
        (0, b"../3.jpg\0"),
        (0, b"3.pickle\0"),
        (156, b"2"),
        (345, b"folder\0"),
    ],
)
def test_a_header_that_is_a_little_different_is_looked_at_closely(field, value):
    data = changed(PAIRS, 12, field, value)
    assert walk(data) == one_by_one(data)
    assert walk(data) != walk(PAIRS) or field == 124


def test_a_checksum_that_does_not_fit_is_noticed_among_headers_alike():
    damaged = bytearray(PAIRS)
    damaged[12 * 512] += 1
    *whole, last = walk(bytes(damaged))
    assert len(whole) == 3 and whole[-1].at_break
    assert isinstance(last, Break) and last.cause == "bad_header" and last.begin == 12 * 512
