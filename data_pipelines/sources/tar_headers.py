"""Walks the headers of a tar without reading its members: ustar, pax, GNU long names, base-256 sizes.

Formats: POSIX.1-2017 pax and ustar interchange formats; GNU tar manual, "Basic Tar Format".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from data_pipelines.storage import ReadAt

BLOCK = 512
_ZEROS = bytes(BLOCK)
READ_AHEAD = 8192
"""Bytes that are read for a header: those of a small member, and the next headers, often come with it."""

_ADLER_PRIME = 65521
_EXTENSION_LIMIT = 1 << 20
_TAIL_LIMIT = 1 << 16
_NAME_LIMIT = 4096
_REGULAR = frozenset((b"0", b"\0", b"7"))
_DIRECTORY = b"5"
_GNU_SPARSE = b"S"
_WITHOUT_DATA = frozenset((b"1", b"2", b"3", b"4", _DIRECTORY, b"6"))
_EXTENDED = frozenset((b"x", b"X", b"g", b"L", b"K"))

PAX_TIME = 2 * BLOCK
"""Bytes of an extended header that holds one short record."""


class Member(NamedTuple):
    """One file of a tar."""

    begin: int
    """Where its first header stands, extensions included."""
    name: str
    offset: int
    """Where its data begins."""
    size: int
    following: int
    """Where the next header is expected."""
    refusal: str | None
    """A cause why its content is not to be read, or None."""


class Break(NamedTuple):
    """Where a tar cannot be walked any further."""

    begin: int
    cause: str
    detail: str


class _HeaderError(ValueError):
    """A header that cannot be followed; `cause` says whether it is damaged or cut off."""

    def __init__(self, detail: str, cause: str = "bad_header") -> None:
        super().__init__(detail)
        self.cause = cause


@dataclass(slots=True)
class _Extension:
    """What extended headers say about the member after them."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


def members(read: ReadAt, file_size: int, start: int = 0) -> Iterator[Member | Break]:
    """Yields the files of a tar from a header's offset on; a `Break` is always the last.

    Directories are passed over. Links, devices, sparse files and names that leave the folder are given with a refusal.
    """
    offset = begin = start
    extension: _Extension | None = None
    buffer, buffer_start = b"", 0
    while True:
        inside = offset - buffer_start
        if inside + BLOCK > len(buffer):
            buffer, buffer_start, inside = read(offset, READ_AHEAD), offset, 0
        header = buffer[inside : inside + BLOCK]
        if len(header) < BLOCK:
            yield Break(begin, "truncated", f"the tar ends at byte {file_size} without its closing blocks")
            return
        if header == _ZEROS:
            yield from _after_end(read, file_size, offset)
            return
        try:
            kind, name, size = _parse(header)
            if kind in _EXTENDED:
                extension = extension or _Extension()
                _extend(extension, kind, _payload(read, offset + BLOCK, size, file_size))
                offset += BLOCK + padded(size)
                continue
            member = _member(begin, offset, header, kind, name, size, extension)
            if member.offset + member.size > file_size:
                raise _HeaderError(f"{member.name} ends at {member.offset + member.size}, the tar before", "truncated")
        except _HeaderError as error:
            yield Break(begin, error.cause, f"at byte {offset}: {error}")
            return
        if kind != _DIRECTORY:
            yield member
        offset = begin = member.following
        extension = None


def ordinary_rest(header: bytes) -> bytes | None:
    """Returns what follows the checksum in the header of a plain file.

    Of another header with the same rest, what stands before the checksum is all there is to know. None: the header says
    more of the file than its kind, or is cut off.
    """
    if len(header) < BLOCK or header[156:157] not in _REGULAR or header[345]:
        return None
    return header[156:]


def pax_time(extended: bytes) -> bytes | None:
    """Returns how a pax header begins that says when a member was written and no more, as webdataset's writer puts one
    before each: what follows this much is the time, whatever it is, in the rest of `PAX_TIME` bytes.

    Args:
        extended: `PAX_TIME` bytes, a header that `members` has followed.
    """
    size = ordinary_size(extended[124:136])
    record = b"%d mtime=" % size
    if extended[156:157] != b"x" or not len(record) < size <= BLOCK or not extended.startswith(record, BLOCK):
        return None
    return extended[: BLOCK + len(record)]


@lru_cache(4096)
def ordinary_size(field: bytes) -> int:
    """Returns the size in a field as nearly all programs write it: eleven octal digits and a zero; -1 for any other."""
    size = _octal(field[:11]) if field[:11].isdigit() and field[11:] == b"\0" else None
    return -1 if size is None else size


def _member(
    begin: int, offset: int, header: bytes, kind: bytes, name: str, size: int, extension: _Extension | None
) -> Member:
    refusal = None if kind in _REGULAR else "not_a_file"
    if extension is not None:
        name = name if extension.name is None else extension.name
        size = size if extension.size is None else extension.size
        refusal = "not_a_file" if extension.sparse else refusal
    if kind == _GNU_SPARSE and header[482]:
        raise _HeaderError("a GNU sparse file with an extended map")
    if kind in _WITHOUT_DATA:
        size = 0
    while name.startswith("./"):
        name = name[2:]
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        refusal = "path_escapes"
    if len(name) > _NAME_LIMIT:
        name, refusal = f"{name[:100]}...", "name_too_long"
    data = offset + BLOCK
    return Member(begin, name, data, size, data + padded(size), refusal)


def _payload(read: ReadAt, data: int, size: int, file_size: int) -> bytes:
    if size > _EXTENSION_LIMIT:
        raise _HeaderError(f"an extended header of {size} bytes")
    if data + size > file_size:
        raise _HeaderError(f"an extended header ends at byte {data + size}, the tar before", "truncated")
    return read(data, size)


def _extend(extension: _Extension, kind: bytes, payload: bytes) -> None:
    if kind == b"L":
        extension.name = payload.rstrip(b"\0").decode("utf-8", "backslashreplace")
    elif kind == b"g":
        if {"path", "size"} & _pax(payload).keys():
            raise _HeaderError("a global pax header sets a path or size for all that follows")
    elif kind != b"K":
        for key, value in _pax(payload).items():
            if key == "path":
                extension.name = value.decode("utf-8", "backslashreplace")
            elif key == "size":
                extension.size = _decimal(value)
            elif key.startswith("GNU.sparse"):
                extension.sparse = True


def _parse(header: bytes) -> tuple[bytes, str, int]:
    """Returns (type flag, name, size) of one header block."""
    checksum = header[148:156]
    stated = _octal(checksum)
    # The low half of Adler-32 is one more than the sum of the bytes, modulo a prime: the fastest sum of bytes in C.
    total = (adler32(header) & 0xFFFF) - (adler32(checksum) & 0xFFFF) + 8 * 32
    if stated is None or ((total - stated) % _ADLER_PRIME and not _signed_sum_is(header, stated)):
        raise _HeaderError(f"the header's checksum is wrong ({_looks_like(header)})")
    field = header[124:136]
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    if size is None:
        raise _HeaderError(f"the size field holds {field!r}")
    end = header.find(b"\0", 0, 100)
    raw = header[: end if end >= 0 else 100]
    if header[345] and header[257:263] == b"ustar\0":
        raw = header[345:500].split(b"\0", 1)[0] + b"/" + raw
    return header[156:157], raw.decode("utf-8", "backslashreplace"), size


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    if not digits.isdigit():
        return None if digits else 0
    try:
        return int(digits, 8)
    except ValueError:
        return None


def _signed_sum_is(header: bytes, stated: int) -> bool:
    signed = memoryview(header).cast("b")
    return sum(signed[:148]) + 8 * 32 + sum(signed[156:]) == stated


def _looks_like(header: bytes) -> str:
    if header[:2] == b"\x1f\x8b" or header[:4] in (b"\x28\xb5\x2f\xfd", b"\xfd7zX") or header[:3] == b"BZh":
        return "a compressed file; shards are plain tars"
    return "damaged, or not a tar"


def _pax(payload: bytes) -> dict[str, bytes]:
    """Returns the records of a pax header: `LENGTH KEY=VALUE\\n`, the length counting the whole record."""
    found: dict[str, bytes] = {}
    position = 0
    while position < len(payload) and payload[position]:
        space = payload.find(b" ", position, position + 20)
        length = _decimal(payload[position:space]) if space > 0 else 0
        if length <= max(space - position, 0) or position + length > len(payload):
            raise _HeaderError("an extended header whose lengths do not add up")
        key, _, value = payload[space + 1 : position + length - 1].partition(b"=")
        found[key.decode("utf-8", "backslashreplace")] = value
        position += length
    return found


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise _HeaderError(f"{digits[:32]!r} where a length is expected")
    return int(digits)


def padded(size: int) -> int:
    """Returns where whole blocks that hold this many bytes end."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _after_end(read: ReadAt, file_size: int, offset: int) -> Iterator[Break]:
    tail = read(offset, min(file_size - offset, _TAIL_LIMIT))
    if tail.strip(b"\0"):
        yield Break(offset, "data_after_end", f"the tar closes at byte {offset} but the file holds more")
