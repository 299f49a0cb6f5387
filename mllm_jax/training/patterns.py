"""Path patterns that choose parameters, such as `connector/**` or `decoder/blocks/*_norm/scale`."""

import difflib
import fnmatch
from collections.abc import Collection, Iterable
from typing import Any


class PatternError(ValueError):
    """A pattern that chooses nothing."""


def matches(pattern: str, path: str) -> bool:
    """Whether `path` fits `pattern`, part by part between slashes.

    `**` stands for any number of parts, none included; `*`, `?` and `[...]` stay within one part.
    """
    return _matches_parts(tuple(pattern.split("/")), tuple(path.split("/")))


def _matches_parts(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches_parts(pattern[1:], parts[skipped:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches_parts(pattern[1:], parts[1:])


def matches_any(patterns: Iterable[str], path: str) -> bool:
    return any(matches(pattern, path) for pattern in patterns)


def choose(patterns: Iterable[str], paths: Collection[str]) -> frozenset[str]:
    """The paths that at least one pattern fits.

    Raises:
        PatternError: a pattern fits no path; the message names the nearest ones.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = {path for path in paths if matches(pattern, path)}
        if not fitting:
            nearest = ", ".join(_nearest(pattern, paths))
            raise PatternError(f"The pattern {pattern!r} matches no parameter. The nearest are: {nearest}.")
        chosen |= fitting
    return frozenset(chosen)


def _nearest(pattern: str, paths: Collection[str]) -> list[str]:
    branches = {f"{path.rsplit('/', depth)[0]}/**" for path in paths for depth in range(1, path.count("/") + 1)}
    return difflib.get_close_matches(pattern, sorted({*paths, *branches}), n=4, cutoff=0.0)


def leaf_path(keys: tuple[Any, ...]) -> str:
    """The slash-joined path of a leaf from JAX's key path."""
    return "/".join(str(key.key) for key in keys)
