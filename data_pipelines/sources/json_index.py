"""Finds where each top-level element of a JSON array, or each line of a JSONL file, stands: one pass, bounded memory.

The index is 16 bytes a record, kept in a file beside the data (or in a folder given) and mapped, not loaded.
"""

import hashlib
import os
import re
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.storage import Storage

RECORD_LIMIT = 1 << 26
"""Bytes that one record may take; a longer one is a quote or bracket that never closes."""

_VERSION = 1
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]"]', re.DOTALL)
_WHITE = b" \t\r\n"


def load_index(path: str, storage: Storage, cache: str | None) -> np.ndarray:
    """Returns i64[records, 2], (offset, length) of each record in file order; length -1: the file breaks off there.

    Args:
        path: a local `.json` (an array) or `.jsonl` file.
        storage: what reads it.
        cache: a folder for the index; None: beside the file, or in memory where that may not be written.
    """
    status = os.stat(path)
    label = f"{_VERSION}:{os.path.abspath(path)}:{status.st_size}:{status.st_mtime_ns}"
    name = f"{os.path.basename(path)}.{hashlib.blake2b(label.encode(), digest_size=6).hexdigest()}.index"
    folder = Path(cache) if cache else Path(path).parent
    target = folder / name
    if target.exists() and target.stat().st_size % 16 == 0:
        return _mapped(target)
    spans = array("q")
    for offset, length in spans_of(path, status.st_size, storage):
        spans.extend((offset, length))
    try:
        if cache:
            folder.mkdir(parents=True, exist_ok=True)
        _write(target, spans)
    except OSError:
        return np.frombuffer(spans, dtype=np.int64).reshape(-1, 2)
    return _mapped(target)


def spans_of(path: str, size: int, storage: Storage, chunk: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) of each record; a last one of length -1 says that the rest of the file cannot be read."""
    head = storage.read(path, 0, 4096).removeprefix(b"\xef\xbb\xbf").lstrip(_WHITE)
    return _array(path, size, storage, chunk) if head.startswith(b"[") else _lines(path, size, storage, chunk)


def _lines(path: str, size: int, storage: Storage, chunk: int) -> Iterator[tuple[int, int]]:
    begin = 3 if storage.read(path, 0, 3) == b"\xef\xbb\xbf" else 0
    pending = b""
    position = begin
    while position < size:
        piece = storage.read(path, position, chunk)
        if not piece:
            break
        position += len(piece)
        lines = (pending + piece).split(b"\n")
        pending = lines.pop()
        for line in lines:
            if line.strip(_WHITE):
                yield begin, len(line)
            begin += len(line) + 1
        if len(pending) > RECORD_LIMIT:
            yield begin, -1
            return
    if pending.strip(_WHITE):
        yield begin, len(pending)


def _array(path: str, size: int, storage: Storage, chunk: int) -> Iterator[tuple[int, int]]:
    depth = 0
    begin = after = 0
    for token, start, end in _tokens(path, size, storage, chunk):
        if token == b'"':
            break
        if depth == 0:
            if token != b"[" or after:
                break
            depth, after = 1, end
            continue
        if depth == 1:
            yield from _between(path, storage, after, start)
            begin = after = start
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                rest = storage.read(path, end, 4096).strip(_WHITE)
                if rest:
                    yield end, -1
                return
        if depth == 1:
            yield begin, end - begin
            after = end
    yield after, -1


def _between(path: str, storage: Storage, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What stands between two elements is a comma; anything else (a number, null) is an element that is no object."""
    gap = storage.read(path, start, min(end - start, RECORD_LIMIT)) if end - start > 1 else b","
    position = start
    for piece in gap.split(b","):
        if piece.strip(_WHITE):
            yield position, len(piece)
        position += len(piece) + 1


def _tokens(path: str, size: int, storage: Storage, chunk: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (first byte, start, end) of strings and brackets; a lone quote is a string that never closes."""
    pending, base, position = b"", 0, 0
    while position < size:
        piece = storage.read(path, position, chunk)
        if not piece:
            break
        position += len(piece)
        text = pending + piece
        end = 0
        for match in _STRUCTURE.finditer(text):
            if match.end() - match.start() == 1 and text[match.start()] == 0x22:
                end = match.start()
                break
            end = match.end()
            yield (b"s" if end - match.start() > 1 else match.group()), base + match.start(), base + end
        else:
            end = max(end, len(text))
        pending, base = text[end:], base + end
        if len(pending) > RECORD_LIMIT:
            break
    if pending:
        yield b'"', base, base + 1


def _write(target: Path, spans: array) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            spans.tofile(file)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _mapped(target: Path) -> np.ndarray:
    if target.stat().st_size == 0:
        return np.zeros((0, 2), np.int64)
    return np.memmap(target, dtype="<i8", mode="r").reshape(-1, 2)
