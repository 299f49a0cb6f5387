"""Shard patterns: brace ranges, globs and lists become a fixed, ordered list of paths."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from data_pipelines.storage import Storage, is_local
from data_pipelines.stores.errors import as_os_errors
from data_pipelines.stores.remote_object import filesystem_of

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_GLOB = re.compile(r"[*?\[]")
_WEB = re.compile(r"https?://[^*\[]*")
"""A web address without a glob; its question mark begins a query."""
_LISTED = 5


def expand(patterns: str | Sequence[str], what: str = "shards") -> tuple[str, ...]:
    """Returns the paths that patterns name: `{00000..00009}` and `{a,b}`, globs (sorted), or plain paths.

    Args:
        patterns: one pattern or several, local or with an fsspec scheme.
        what: how an error calls them.

    Raises:
        FileNotFoundError: a pattern names nothing, or a local path is not there.
        ValueError: the same path is named twice.
    """
    listed = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    paths = [path for pattern in listed for braced in _braces(pattern) for path in _glob(braced, pattern, what)]
    if not paths:
        raise FileNotFoundError(f"The list of {what} is empty: {patterns!r} names no file.")
    missing = [path for path in paths if is_local(path) and not os.path.isfile(path.removeprefix("file://"))]
    if missing:
        shown = ", ".join(missing[:_LISTED]) + (" ..." if len(missing) > _LISTED else "")
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} {what} named by {patterns!r} are not there: {shown}"
        )
    if len(set(paths)) < len(paths):
        twice = next(path for index, path in enumerate(paths) if path in paths[:index])
        raise ValueError(f"The {what} {patterns!r} name {twice} twice; every shard may stand there once.")
    return tuple(paths)


def identity(paths: Sequence[str], storage: Storage) -> dict[str, Any]:
    """Returns what tells one shard list from another: names below their common folder, and local sizes.

    The common folder is left out, so that data may move between runs; sizes of remote shards would cost a request each.
    """
    split = [path.split("/") for path in paths]
    common = next((depth for depth, names in enumerate(zip(*split, strict=False)) if len(set(names)) > 1), -1)
    names = _hash("/".join(parts[common:]) for parts in split)
    local = all(is_local(path) for path in paths)
    sizes = _hash(str(os.stat(path.removeprefix("file://")).st_size) for path in paths) if local else None
    return {"shards": len(paths), "names": names, "sizes": sizes}


def _braces(pattern: str) -> list[str]:
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last, choices = found.groups()
    if choices is not None:
        values = choices.split(",")
    else:
        if int(last) < int(first):
            raise ValueError(f"The range in {pattern!r} counts down; write the lower number first.")
        values = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [expanded for value in values for expanded in _braces(head + value + tail)]


def _glob(path: str, pattern: str, what: str) -> list[str]:
    if not _GLOB.search(path) or _WEB.fullmatch(path) or (is_local(path) and os.path.exists(path)):
        return [path]
    filesystem, inner = filesystem_of(path)
    with as_os_errors(path):
        found = sorted(str(match) for match in filesystem.glob(inner))
    if not found:
        raise FileNotFoundError(f"The list of {what} is empty: no file matches {pattern!r}.")
    return found if is_local(path) else [filesystem.unstrip_protocol(match) for match in found]


def _hash(values: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(values).encode(), digest_size=8).hexdigest()
