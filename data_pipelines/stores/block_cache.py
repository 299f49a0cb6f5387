"""Blocks kept in files that any number of processes share and that outlive them.

A block is written under another name and takes its own when it is whole; behind its bytes stands their digest, which is
compared before the first byte is used. So neither a process that is killed nor a machine that loses its power leaves
anything that would be read. A file that is too old is unlinked; whoever has it open reads on.
"""

import hashlib
import logging
import os
import secrets
import threading
from functools import lru_cache
from pathlib import Path

from data_pipelines.stores.blocks import BlockName
from data_pipelines.stores.local_file import LocalFile

LOGGER = logging.getLogger("data_pipelines")

_DIGEST = 16
_SHARE = 64
"""Into how many parts of the limit's bytes a process may write between two looks at what all of them have written."""
_WRITERS = 8
"""Processes that together stay within the limit for certain."""


class DamagedBlockError(OSError):
    """A file of the cache is not what was written."""


class BlockCache:
    """A folder of blocks, bounded by their bytes; those used longest ago go first.

    Up to eight processes stay within `limit` together; each one more may pass it by a 64th.
    """

    def __init__(self, folder: str, limit: int, block_bytes: int, open_files: int = 128) -> None:
        """
        Args:
            folder: may be shared by runs and processes of one machine; a sub-folder of it is written and cleared.
            limit: bytes, at least 16 blocks.
            block_bytes: of the longest block.
            open_files: that stay open.
        """
        # The number changes with the layout, so that no version of the program reads what another one wrote.
        self._folder = Path(folder) / "blocks-1"
        self._share = max(limit // _SHARE, block_bytes + _DIGEST)
        self._target = limit - _WRITERS * self._share
        self._lock = threading.Lock()
        self._unseen = limit
        self._open = lru_cache(maxsize=open_files)(self._checked)
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: BlockName, start: int, end: int) -> bytes | None:
        try:
            return self._open(name).read(start, end - start)
        except DamagedBlockError as error:
            LOGGER.warning("%s; it is removed and read from the store again", error)
            self._path(name).unlink(missing_ok=True)
        except OSError:
            pass  # Not there, or not readable: it is read from the store, which is always right.
        return None

    def put(self, name: BlockName, data: bytes) -> None:
        """Keeps a block; raises OSError when the folder cannot be written."""
        self._make_room(len(data) + _DIGEST)
        target = self._path(name)
        # Not `replace_file`, which waits for the disk: the digest tells what did not reach it.
        part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        for last in (False, True):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(data + _digest(data))
                os.replace(part, target)
                return
            except FileNotFoundError:  # Another process removed the folder, as it was empty for a moment.
                if last:
                    raise
            except OSError:
                part.unlink(missing_ok=True)
                raise

    def room(self, name: BlockName) -> bool:
        return not self._path(name).exists()

    def _path(self, name: BlockName) -> Path:
        return self._folder / name.key / f"{name.number}.block"

    def _checked(self, name: BlockName) -> LocalFile:
        """Opens a block and compares its digest."""
        path = self._path(name)
        file = LocalFile(path)
        whole = file.read(0, name.length + _DIGEST + 1)
        data = memoryview(whole)[: name.length]
        if len(whole) != name.length + _DIGEST or _digest(data) != whole[name.length :]:
            raise DamagedBlockError(f"{path} is damaged")
        os.utime(path)
        return file

    def _make_room(self, size: int) -> None:
        with self._lock:
            self._unseen += size
            if self._unseen > self._share:
                self._unseen = size
                self._remove_oldest()

    def _remove_oldest(self) -> None:
        """Removes files until eight processes can each write their share."""
        files = self._files()
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held <= self._target:
                return
            try:
                os.unlink(path)
                held -= size
                os.rmdir(os.path.dirname(path))
            except OSError:
                continue  # Another process was first, or the folder holds more.

    def _files(self) -> list[tuple[int, int, str]]:
        """(when it was used last, size, path) of every file, unfinished ones included: a killed process leaves some."""
        found = []
        for folder in _entries(self._folder):
            for entry in _entries(folder):
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        return found


def _entries(folder: "os.PathLike[str]") -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
