"""What a walk over a tar's headers found, as arrays: each sample and its members, found again without the tar.

The bytes of an index are a line that names the format, a BLAKE2b digest of all that follows, the length of a JSON
object, the object, and little-endian arrays of unsigned integers as narrow as their numbers allow.
"""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from data_pipelines.sources.tar_headers import Break
from data_pipelines.sources.tar_samples import TarSample

_FORMAT = b"mllm tar index 1\n\0\0\0\0\0\0\0"
_DIGEST = 16
_LENGTH = 8
_BODY = len(_FORMAT) + _DIGEST
_START = _BODY + _LENGTH
_LIMIT = 1 << 30


class DamagedIndexError(ValueError):
    """The bytes are no index, or not all of one."""


class TarIndex:
    """The samples of one tar, and where it breaks off if it does. S samples, M members."""

    def __init__(self, arrays: dict[str, np.ndarray], described: dict[str, Any]) -> None:
        """Takes what `of` or `from_bytes` made."""
        self._arrays = arrays
        self._described = described
        self._extensions: list[str] = described["extensions"]
        self._refusals: dict[str, list[str]] = described["refusals"]
        # A number out of a memoryview costs a fraction of what one out of an array does; it takes no stated byte order.
        self._columns: dict[str, Any] = {name: column.view(column.dtype.char).data for name, column in arrays.items()}
        self.places = arrays["places"]
        """[S], where each sample begins, in order."""
        self.following = arrays["following"]
        """[S], where a walk goes on after each."""
        self.broken = Break(*described["broken"]) if described["broken"] else None

    @classmethod
    def of(cls, found: Iterable[TarSample | Break]) -> "TarIndex":
        """Returns the index of what `samples` gives for a whole tar."""
        names = ("places", "following", "extensions", "starts", "sizes", "first_members", "key_starts")
        columns = {name: array("Q") for name in names}
        keys = bytearray()
        extensions: dict[str, int] = {}
        refusals: dict[str, tuple[str, str]] = {}
        broken: Break | None = None
        for sample in found:
            if isinstance(sample, Break):
                broken = sample
                continue
            if sample.refusal is not None:
                refusals[str(len(columns["places"]))] = sample.refusal
            columns["places"].append(sample.place)
            columns["following"].append(sample.following)
            columns["first_members"].append(len(columns["sizes"]))
            columns["key_starts"].append(len(keys))
            for extension, (offset, size) in sample.members.items():
                columns["extensions"].append(extensions.setdefault(extension, len(extensions)))
                columns["starts"].append(offset - sample.place)
                columns["sizes"].append(size)
            keys += sample.key.encode()
        columns["first_members"].append(len(columns["sizes"]))
        columns["key_starts"].append(len(keys))
        arrays = {name: _narrow(values) for name, values in columns.items()}
        arrays["keys"] = np.frombuffer(bytes(keys), np.uint8)
        return cls(arrays, {"extensions": list(extensions), "refusals": refusals, "broken": broken})

    def __len__(self) -> int:
        return len(self.places)

    def row(self, place: int) -> int:
        """Returns the number of the first sample at a place or behind it."""
        return bisect_left(self._columns["places"], place)

    def at(self, place: int) -> TarSample | None:
        """Returns the sample at a place; None if none begins there."""
        row = self.row(place)
        return self.sample(row) if row < len(self) and self._columns["places"][row] == place else None

    def sample(self, row: int) -> TarSample:
        """Returns a sample as the walk gave it."""
        columns, names = self._columns, self._extensions
        place, key_starts, first_members = columns["places"][row], columns["key_starts"], columns["first_members"]
        numbers, starts, sizes = columns["extensions"], columns["starts"], columns["sizes"]
        refusal = self._refusals.get(str(row)) if self._refusals else None
        return TarSample(
            str(columns["keys"][key_starts[row] : key_starts[row + 1]], "utf-8"),
            place,
            columns["following"][row],
            {
                names[numbers[member]]: (place + starts[member], sizes[member])
                for member in range(first_members[row], first_members[row + 1])
            },
            (refusal[0], refusal[1]) if refusal else None,
            self.broken is not None and row == len(self) - 1,
        )

    def samples(self, start: int = 0) -> Iterator[TarSample | Break]:
        """Yields what `samples` yields from a place on that a walk gave."""
        for row in range(self.row(start), len(self)):
            yield self.sample(row)
        if self.broken is not None:
            yield self.broken

    def to_bytes(self, about: dict[str, Any]) -> bytes:
        """Returns the index as bytes, with a JSON object that says what it is the index of."""
        sizes = [[name, column.dtype.str, len(column)] for name, column in self._arrays.items()]
        described = json.dumps(self._described | {"about": about, "arrays": sizes}).encode()
        described += b" " * (-len(described) % 8)
        content = [len(described).to_bytes(_LENGTH, "little"), described]
        for column in self._arrays.values():
            content.append(column.tobytes() + bytes(-column.nbytes % 8))
        body = b"".join(content)
        return _FORMAT + _digest(body) + body

    @classmethod
    def from_bytes(cls, data: Any) -> tuple["TarIndex", dict[str, Any]]:
        """Returns the index in some bytes (or a buffer, which stays in use) and what it is the index of.

        Raises:
            DamagedIndexError: its checksum is wrong, or it is of another version.
        """
        view = memoryview(data)
        _check_format(bytes(view[:_START]))
        if _digest(view[_BODY:]) != bytes(view[len(_FORMAT) : _BODY]):
            raise DamagedIndexError("its checksum is wrong")
        position = _START + int.from_bytes(view[_BODY:_START], "little")
        arrays = {}
        try:
            described = json.loads(bytes(view[_START:position]))
            for name, kind, length in described["arrays"]:
                arrays[name] = np.frombuffer(view, np.dtype(kind), length, position)
                position += arrays[name].nbytes + -arrays[name].nbytes % 8
            return cls(arrays, described), described["about"]
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedIndexError(str(error)) from None


def about(file: BinaryIO) -> dict[str, Any]:
    """Returns what an index file is the index of, without a look at the rest.

    Raises:
        DamagedIndexError: the file does not say.
    """
    start = file.read(_START)
    _check_format(start)
    try:
        found: dict[str, Any] = json.loads(file.read(int.from_bytes(start[_BODY:], "little") % _LIMIT))["about"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedIndexError(str(error)) from None
    return found


def _check_format(start: bytes) -> None:
    if not start.startswith(_FORMAT):
        raise DamagedIndexError(f"it begins with {start[: len(_FORMAT)]!r}, expected {_FORMAT!r}")


def _narrow(values: array) -> np.ndarray:
    numbers = np.frombuffer(values, np.uint64) if values else np.zeros(0, np.uint64)
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))).newbyteorder("<"))


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
