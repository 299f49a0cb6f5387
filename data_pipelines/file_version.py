"""What tells one content of a local file from another without reading it."""

import os
from typing import Any


def local_version(path: str) -> dict[str, Any]:
    """Returns the size in bytes and the time of the last change in nanoseconds, as JSON; raises OSError."""
    status = os.stat(path)
    return {"size": status.st_size, "modified": status.st_mtime_ns}
