"""Walks the headers of a tar without reading its members: ustar, pax, GNU long names, base-256 sizes.

Formats: POSIX.1-2017 pax and ustar interchange formats; GNU tar manual, "Basic Tar Format".
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_READ_AHEAD = 4096
_EXTENSION_LIMIT = 1 << 20
_TAIL_LIMIT = 1 << 16
_REGULAR = b"0\0" + b"7"
_WITHOUT_DATA = b"123456"

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> bytes, fewer only at the end of the file."""


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
    pass


def members(read: ReadAt, file_size: int, start: int = 0) -> Iterator[Member | Break]:
    """Yields the files of a tar from a header's offset on; a `Break` is always the last.

    Directories are passed over. Links, devices, sparse files and names that leave the folder are given with a refusal.
    """
    offset = begin = start
    name: str | None = None
    size: int | None = None
    sparse = False
    buffer, buffer_start = b"", 0
    while True:
        inside = offset - buffer_start
        if inside + BLOCK > len(buffer):
            buffer, buffer_start, inside = read(offset, _READ_AHEAD), offset, 0
        header = buffer[inside : inside + BLOCK]
        if len(header) < BLOCK:
            yield Break(begin, "truncated", f"the tar ends at byte {file_size} without its closing blocks")
            return
        if header == _ZEROS:
            yield from _after_end(read, file_size, offset)
            return
        try:
            kind, own_name, own_size = _parse(header)
            data = offset + BLOCK
            if kind in b"xgLKX":
                payload = _extension(read, data, own_size, file_size)
                if kind == b"L":
                    name = payload.rstrip(b"\0").decode("utf-8", "backslashreplace")
                elif kind in b"xX":
                    pax = _pax(payload)
                    name = pax["path"].decode("utf-8", "backslashreplace") if "path" in pax else name
                    size = _decimal(pax["size"]) if "size" in pax else size
                    sparse = any(key.startswith("GNU.sparse") for key in pax)
                elif kind == b"g" and {"path", "size"} & _pax(payload).keys():
                    raise _HeaderError("a global pax header sets a path or size for all that follows")
                offset = data + _padded(own_size)
                continue
            if kind == b"S" and header[482] != 0:
                raise _HeaderError("a GNU sparse file with an extended map")
        except _TruncatedError as error:
            yield Break(begin, "truncated", str(error))
            return
        except _HeaderError as error:
            yield Break(begin, "bad_header", f"at byte {offset}: {error}")
            return
        final_name = own_name if name is None else name
        final_size = 0 if kind in _WITHOUT_DATA else own_size if size is None else size
        following = data + _padded(final_size)
        if data + final_size > file_size:
            yield Break(begin, "truncated", f"{final_name} ends at byte {data + final_size}, the tar at {file_size}")
            return
        if kind != b"5":
            refusal = None if kind in _REGULAR and not sparse else "not_a_file"
            final_name, unsafe = _safe(final_name)
            yield Member(begin, final_name, data, final_size, following, unsafe or refusal)
        offset = begin = following
        name, size, sparse = None, None, False


class _TruncatedError(Exception):
    pass


def _parse(header: bytes) -> tuple[bytes, str, int]:
    """Returns (type flag, name, size) of one header block."""
    checksum = header[148:156]
    stated = _octal(checksum)
    # The sum of all bytes modulo 255, in C: it sees every change of a header but 0x00 against 0xff.
    total = int.from_bytes(header, "little") - int.from_bytes(checksum, "little") + 8 * 32
    if stated is None or ((total - stated) % 255 and not _signed_sum_is(header, stated)):
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


def _extension(read: ReadAt, data: int, size: int, file_size: int) -> bytes:
    if size > _EXTENSION_LIMIT:
        raise _HeaderError(f"an extended header of {size} bytes")
    if data + size > file_size:
        raise _TruncatedError(f"an extended header ends at byte {data + size}, the tar at {file_size}")
    return read(data, size)


def _pax(payload: bytes) -> dict[str, bytes]:
    """Returns the records of a pax header: `LENGTH KEY=VALUE\\n`, the length counting the whole record."""
    found: dict[str, bytes] = {}
    position = 0
    while position < len(payload) and payload[position]:
        space = payload.find(b" ", position, position + 20)
        length = _decimal(payload[position:space]) if space > 0 else 0
        if length <= space - position or position + length > len(payload):
            raise _HeaderError("an extended header whose lengths do not add up")
        key, _, value = payload[space + 1 : position + length - 1].partition(b"=")
        found[key.decode("utf-8", "backslashreplace")] = value
        position += length
    return found


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise _HeaderError(f"{digits[:32]!r} where a length is expected")
    return int(digits)


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _safe(name: str) -> tuple[str, str | None]:
    while name.startswith("./"):
        name = name[2:]
    unsafe = name.startswith("/") or (".." in name and ".." in name.split("/"))
    return name, "path_escapes" if unsafe else None


def _after_end(read: ReadAt, file_size: int, offset: int) -> Iterator[Break]:
    tail = read(offset, min(file_size - offset, _TAIL_LIMIT))
    if tail.strip(b"\0"):
        yield Break(offset, "data_after_end", f"the tar closes at byte {offset} but the file holds more")
