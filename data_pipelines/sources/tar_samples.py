"""Groups the members of a tar into samples: members that stand together and share the text before the first dot.

Nearly all headers of a tar are alike but for name, size, time and checksum. Those are read here, in one go with the
grouping and in a fraction of the time; every other header is left to `members`, which tells the same of any of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import adler32

from data_pipelines.sources.tar_headers import (
    BLOCK,
    PAX_TIME,
    READ_AHEAD,
    Break,
    Member,
    members,
    ordinary_rest,
    ordinary_size,
    pax_time,
)
from data_pipelines.storage import ReadAt

PICKLED = frozenset({"pyd", "pickle", "pkl"})

MEMBERS_LIMIT = 1000
"""Members of one sample; a tar whose members all share a key would not fit into memory."""

_KNOWN_LIMIT = MEMBERS_LIMIT // 4
"""Extensions that are known: at most so many members of a sample come without a look at `MEMBERS_LIMIT`."""
_TIMES_LIMIT = 4
"""Ways to write a time that are known; they differ in length."""
_SLASH = ord("/")
"""Comes behind the dot; all letters and digits come behind it."""
_PLAIN_NAME = 80
"""Bytes of a name that is not long; with a longer ending it still fits into its field."""
_PLAIN_ENDING = 20
"""Bytes of an ending that is not long."""
_RESTS_LIMIT = 512
"""Checksums that are known."""
_UNSEEN = bytes(BLOCK)
"""Too long to be found where a part of a header is looked for."""

Ahead = Callable[[int, int], tuple[bytes, int]]
"""(where a header begins, where the sample before it begins) -> bytes that hold the header, and where they begin."""


@dataclass(slots=True)
class TarSample:
    """Members of one key, found by their headers alone."""

    key: str
    place: int
    """Offset of its first header."""
    following: int
    """Offset of the header after it."""
    members: dict[str, tuple[int, int]]
    """Extension (lower case, without the first dot) -> (offset, size) of the data."""
    refusal: tuple[str, str] | None
    """(cause, detail) when a member may not be read: the whole sample is then refused."""
    at_break: bool = False
    """Whether the tar breaks off right after it, so that members may be missing."""


def samples(read: ReadAt, file_size: int, start: int = 0, ahead: Ahead | None = None) -> Iterator[TarSample | Break]:
    """Yields the samples of a tar from a place on; a `Break` is always the last.

    An extension that comes a second time begins a new sample: keys may repeat, places do not.

    Args:
        read: of the tar.
        file_size: of the tar in bytes.
        start: where the first header stands.
        ahead: reads headers in the place of `read`, where more than headers is wanted.
    """
    ahead = ahead or (lambda offset, place: (read(offset, READ_AHEAD), offset))
    buffer, buffer_start, last = b"", start, -1
    likely = _Likely()
    rests, times, endings = likely.rests, likely.times, likely.endings
    prefix, skip, begin, offset = _UNSEEN, BLOCK, start, start
    sample: TarSample | None = None
    held: dict[str, tuple[int, int]] = {}
    while True:
        at = offset - buffer_start
        if at > last:
            buffer, buffer_start = ahead(offset, begin if sample is None else sample.place)
            at, last = offset - buffer_start, len(buffer) - BLOCK
        if times and offset == begin and buffer.startswith(times, at):
            offset += PAX_TIME
            continue
        head = buffer[at : at + 148]
        # Adler-32 as in `tar_headers`: the sum of so few bytes does not reach its prime.
        if buffer.startswith(rests[adler32(head) & 0xFFFF], at + 148):
            size = ordinary_size(head[124:136])
            data = offset + 512
            if size >= 0 and data + size <= file_size:
                following = data + (size + 511 & -512)
                end = head.find(0)
                if head.startswith(prefix):
                    extension = endings.get(head[skip:end])
                    if extension is not None and extension not in held:
                        held[extension] = data, size
                        begin = offset = following
                        continue
                key, ending = _plain(head[:end])
                extension = endings.get(ending)
                if key and extension and (sample is None or key != sample.key or extension in held):
                    if sample is not None:
                        sample.following = begin
                        yield sample
                    held = {extension: (data, size)}
                    sample = TarSample(key, begin, following, held, None)
                    skip = end - len(ending)
                    prefix = head[:skip]
                    begin = offset = following
                    continue
        member = next(members(read, file_size, begin), None)
        told, sample = _looked_at(member, begin, sample)
        yield from told
        if sample is None or not isinstance(member, Member):
            return
        held = sample.members
        likely.learn(buffer, begin - buffer_start, member)
        times, prefix = likely.times, _UNSEEN
        begin = offset = member.following


def _looked_at(
    member: Member | Break | None, begin: int, sample: TarSample | None
) -> tuple[list[TarSample | Break], TarSample | None]:
    """What ends before a member whose header was followed, and the sample that it belongs to; None: the tar has ended.

    Args:
        member: the next one, or what ends the tar.
        begin: where it begins.
        sample: that of the member before it.
    """
    key, extension = _parted(member)
    told: list[TarSample | Break] = []
    if sample is not None and (key != sample.key or extension in sample.members):
        sample.following, sample.at_break = begin, isinstance(member, Break)
        told, sample = [sample], None
    if isinstance(member, Member):
        sample = sample or TarSample(str(key), member.begin, member.following, {}, None)
        _add(sample, member, extension)
    elif member is not None:
        told.append(member)
    return told, sample


class _Rests(dict[int, bytes]):
    """How a header goes on, from its checksum on, by the low half of the Adler-32 of what stands before."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = _UNSEEN
        self._added = 8 * 32 - 1

    def learn(self, header: bytes) -> None:
        rest = ordinary_rest(header)
        if rest is not None and rest != self._rest:
            self._rest = rest
            self._added = sum(rest) + 8 * 32 - 1
            self.clear()

    def __missing__(self, low_half: int) -> bytes:
        if len(self) == _RESTS_LIMIT:
            self.clear()
        found = self[low_half] = b"%06o\0 " % (low_half + self._added) + self._rest
        return found


class _Likely:
    """What the next header looks like in most tars, learned from those before it."""

    __slots__ = ("endings", "rests", "times")

    def __init__(self) -> None:
        self.rests = _Rests()
        self.times: tuple[bytes, ...] = ()
        """How an extended header begins that tells but a time."""
        self.endings: dict[bytes, str] = {}
        """How the name ends, behind the first dot, and what that is as an extension."""

    def learn(self, buffer: bytes, at: int, member: Member) -> None:
        """Takes the headers of a member, which begin at a place of a buffer, as far as they are there."""
        headers = buffer[at : at + member.offset - member.begin] if at >= 0 else b""
        if member.refusal is not None or len(headers) < member.offset - member.begin:
            return
        self.rests.learn(headers[-BLOCK:])
        time = pax_time(headers) if len(headers) == PAX_TIME + BLOCK else None
        if time is not None and time not in self.times:
            self.times = (*self.times, time)[-_TIMES_LIMIT:]
        ending = member.name.rpartition("/")[2].partition(".")[2]
        extension = ending.lower()
        if (
            0 < len(ending.encode()) <= _PLAIN_ENDING
            and "\0" not in ending
            and extension.rpartition(".")[2] not in PICKLED
        ):
            if len(self.endings) == _KNOWN_LIMIT:
                self.endings.clear()
            self.endings[ending.encode()] = extension


def _plain(name: bytes) -> tuple[str | None, bytes]:
    """The key that a name begins with, and what is behind the dot.

    No key: the name must be looked at more closely, as it is long, not ASCII, has none, or leads elsewhere.
    """
    folder, slash, base = name.rpartition(b"/")
    stem, _, ending = base.partition(b".")
    if len(name) > _PLAIN_NAME or not stem or not name.isascii() or name[0] <= _SLASH or b".." in folder:
        return None, ending
    return (folder + slash + stem).decode(), ending


def _parted(member: Member | Break | None) -> tuple[str | None, str]:
    """The key of a member, and its extension; the end of a tar has no key."""
    if not isinstance(member, Member):
        return None, ""
    folder, slash, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _add(sample: TarSample, member: Member, extension: str) -> None:
    if len(sample.members) == MEMBERS_LIMIT:
        sample.refusal = sample.refusal or ("too_many_members", f"more than {MEMBERS_LIMIT} members of one key")
        return
    sample.members[extension] = (member.offset, member.size)
    if sample.refusal is None:
        if member.refusal is not None:
            sample.refusal = (member.refusal, f"member {member.name!r}")
        elif extension.rpartition(".")[2] in PICKLED:
            sample.refusal = ("pickled_member", f"member {member.name!r} is never unpickled")
