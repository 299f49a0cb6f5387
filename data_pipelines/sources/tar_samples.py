"""Groups the members of a tar into samples: members that stand together and share the text before the first dot."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.sources.tar_headers import Break, ReadAt, members

PICKLED = frozenset({"pyd", "pickle", "pkl"})

MEMBERS_LIMIT = 1000
"""Members of one sample; a tar whose members all share a key would not fit into memory."""


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


def samples(read: ReadAt, file_size: int, start: int = 0) -> Iterator[TarSample | Break]:
    """Yields the samples of a tar from a place on; a `Break` is always the last.

    An extension that comes a second time begins a new sample: keys may repeat, places do not.
    """
    current: TarSample | None = None
    for member in members(read, file_size, start):
        if isinstance(member, Break):
            if current is not None:
                current.at_break = True
                yield current
            yield member
            return
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        key = folder + slash + stem
        if current is None or key != current.key or extension in current.members:
            if current is not None:
                yield current
            current = TarSample(key, member.begin, member.following, {}, None)
        current.following = member.following
        if len(current.members) == MEMBERS_LIMIT:
            current.refusal = current.refusal or ("too_many_members", f"more than {MEMBERS_LIMIT} members of one key")
            continue
        current.members[extension] = (member.offset, member.size)
        if current.refusal is None:
            if member.refusal is not None:
                current.refusal = (member.refusal, f"member {member.name!r}")
            elif extension.rpartition(".")[2] in PICKLED:
                current.refusal = ("pickled_member", f"member {member.name!r} is never unpickled")
    if current is not None:
        yield current
