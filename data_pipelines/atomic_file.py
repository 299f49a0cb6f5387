"""Files that are there whole or not at all."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_UNFINISHED = re.compile(r"\..+\.\d+-[0-9a-f]{8}")
"""Names of the files that `replace_file` has not put in their place."""


def replace_file(path: str | Path, chunks: Iterable[Any]) -> None:
    """Writes bytes (or buffers of them) to a file beside `path` and puts it in its place once it is on the disk.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind then.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unfinished_files(folder: Path) -> Iterator[Path]:
    """Yields what processes that were killed while they wrote had not put in its place."""
    return (path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name))
