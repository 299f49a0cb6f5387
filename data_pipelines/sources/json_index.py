"""Finds where each top-level element of a JSON array, or each line of a JSONL file, stands: one pass, bounded memory.

The index is 16 bytes a record, kept in a file beside the data (or in a folder given) and mapped, not loaded.
"""

import hashlib
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.atomic_file import replace_file
from data_pipelines.storage import Storage, is_local

RECORD_LIMIT = 1 << 26
"""Bytes that one record may take; a longer one is a quote or bracket that never closes."""

_VERSION = 1
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# Possessive throughout, so that a quote which never closes costs one scan.
_NEXT_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb')*+([{}\[\]"]|\Z)', re.DOTALL)
_SCALAR = re.compile(_STRING + rb'|[^,\s"][^,"]*|"', re.DOTALL)
_WHITE = b" \t\r\n"


def load_index(path: str, storage: Storage, cache: str | None) -> np.ndarray:
    """Returns i64[records, 2], (offset, length) of each record in file order; length -1: the file breaks off there.

    Args:
        path: a local `.json` (an array) or `.jsonl` file.
        storage: what reads it.
        cache: a folder for the index; None: beside the file, or in memory where that may not be written.
    """
    if not is_local(path):
        raise ValueError(f"{path} is remote, but conversations are read at random places; copy the file here first.")
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
        replace_file(target, [spans])
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
    depth = begin = after = 0
    for bracket, at in _brackets(path, size, storage, chunk):
        if bracket == b'"':
            break
        if bracket in b"{[":
            if depth == 1:
                yield from _scalars(path, storage, after, at)
                begin = at
            depth += 1
            after = at + 1 if depth == 1 else after
            continue
        depth -= 1
        if depth == 1:
            after = at + 1
            yield begin, after - begin
        elif depth == 0:
            yield from _scalars(path, storage, after, at)
            if storage.read(path, at + 1, 4096).strip(_WHITE):
                yield at + 1, -1
            return
    yield after, -1


def _scalars(path: str, storage: Storage, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields what stands between two bracketed elements besides a comma: numbers, strings, null."""
    for match in _SCALAR.finditer(storage.read(path, start, min(end - start, RECORD_LIMIT))):
        yield start + match.start(), match.end() - match.start()


def _brackets(path: str, size: int, storage: Storage, chunk: int) -> Iterator[tuple[bytes, int]]:
    """Yields each bracket outside strings and its offset; a quote at last if a string never closes."""
    pending, base, position = b"", 0, 0
    while position < size:
        piece = storage.read(path, position, chunk)
        if not piece:
            break
        position += len(piece)
        text = pending + piece
        end = 0
        for match in _NEXT_BRACKET.finditer(text):
            bracket = match[1]
            if not bracket:
                break
            if bracket == b'"':
                end = match.end() - 1
                break
            end = match.end()
            yield bracket, base + end - 1
        pending, base = text[end:], base + end
        if len(pending) > RECORD_LIMIT:
            break
    if pending.startswith(b'"'):
        yield b'"', base


def _mapped(target: Path) -> np.ndarray:
    if target.stat().st_size == 0:
        return np.zeros((0, 2), np.int64)
    return np.memmap(target, dtype="<i8", mode="r").reshape(-1, 2)
