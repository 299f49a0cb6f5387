"""Files that are there whole or not at all."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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
