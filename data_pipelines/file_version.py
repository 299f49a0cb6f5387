"""What tells one content of a file from another without reading it."""

import os
from typing import Any

import fsspec

_TAGS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""Keys under which fsspec's filesystems say that a file is another, the surest first."""


def local_version(path: str) -> dict[str, Any]:
    """Returns the size in bytes and the time of the last change in nanoseconds, as JSON; raises OSError."""
    status = os.stat(path)
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def remote_version(path: str) -> dict[str, Any]:
    """Returns the size in bytes and an etag, a generation or a time if the store tells one; raises OSError."""
    filesystem, inner = fsspec.core.url_to_fs(path)
    # A listing that was kept would hide a change.
    filesystem.invalidate_cache(inner)
    facts = filesystem.info(inner)
    tag = next((name for name in _TAGS if facts.get(name) is not None), None)
    return {"size": int(facts["size"])} | ({} if tag is None else {tag: str(facts[tag])})
