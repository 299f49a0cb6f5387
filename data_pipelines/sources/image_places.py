"""Where the images that a JSON file names are: in a folder, or in tars."""

import errno
import hashlib
import os
from functools import partial
from typing import Protocol

import numpy as np

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange
from data_pipelines.sources.tar_headers import Break, members
from data_pipelines.sources.webdataset import encodable
from data_pipelines.storage import Storage, is_local

_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""Errors that say that there is no such file, however often it is asked for."""


class ImagePlaces(Protocol):
    """Finds an image by the name that a record gives it."""

    def find(self, name: str, key: str) -> ByteRange | Skip: ...


class FolderImages:
    """Images below one folder; a path that leads out of it, also through a link, is refused."""

    def __init__(self, folder: str, storage: Storage) -> None:
        self._folder = folder
        self._storage = storage
        self._local = is_local(folder)
        self._root = os.path.realpath(folder) if self._local else folder.rstrip("/")
        if self._local and not os.path.isdir(folder):
            raise FileNotFoundError(f"The image folder {folder} is not there.")

    def find(self, name: str, key: str) -> ByteRange | Skip:
        if not name or "\0" in name or name.startswith("/") or ".." in name.split("/") or "://" in name:
            return Skip("path_escapes" if name else "missing_image", key, f"image {name!r} below {self._folder}")
        if not encodable(name):
            return Skip("missing_image", key, f"no file can be called {name!r}")
        if not self._local:
            return ByteRange(f"{self._root}/{name}")
        path = os.path.realpath(os.path.join(self._root, name))
        if not path.startswith(self._root.rstrip("/") + "/"):
            return Skip("path_escapes", key, f"image {name!r} is a link out of {self._folder}")
        try:
            size = os.stat(path).st_size
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            size = -1
        if size < 0 or not os.path.isfile(path):
            return Skip("missing_image", key, f"no file {name!r} in {self._folder}")
        return ByteRange(path, 0, size) if size else Skip("empty_image", key, f"{name!r} has no bytes")


class TarImages:
    """Images that are members of tars, found by a table of 28 bytes a member: no name is kept."""

    def __init__(self, shards: tuple[str, ...], storage: Storage) -> None:
        self._shards = shards
        rows: list[tuple[int, int, int, int]] = []
        for shard, path in enumerate(shards):
            size = storage.size(path)
            for member in members(partial(storage.read, path), size):
                if isinstance(member, Break):
                    raise ValueError(
                        f"{path} cannot be read past byte {member.begin} ({member.cause}: {member.detail}), so the "
                        "images in it cannot be found. Write the shard again."
                    )
                if member.refusal is None:
                    rows.append((_digest(member.name), shard, member.offset, member.size))
        table = np.array(rows, dtype=np.uint64).reshape(-1, 4)
        order = np.argsort(table[:, 0], kind="stable")
        self._digests = table[order, 0]
        self._places = table[order, 1:].astype(np.int64)

    def find(self, name: str, key: str) -> ByteRange | Skip:
        while name.startswith("./"):
            name = name[2:]
        digest = np.uint64(_digest(name))
        at = int(np.searchsorted(self._digests, digest))
        if at == len(self._digests) or self._digests[at] != digest:
            return Skip("missing_image", key, f"no member {name!r} in the {len(self._shards)} image tars")
        shard, offset, size = (int(value) for value in self._places[at])
        if size == 0:
            return Skip("empty_image", key, f"member {name!r} has no bytes")
        return ByteRange(self._shards[shard], offset, size)


class NoImages:
    """For conversations that are text alone."""

    def find(self, name: str, key: str) -> ByteRange | Skip:
        return Skip("missing_image", key, f"image {name!r}, but the source sets neither images nor image_shards")


def open_images(folder: str | None, shards: tuple[str, ...], storage: Storage) -> ImagePlaces:
    """Finds images in a folder, else in tars, else nowhere.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    if folder is not None:
        return FolderImages(folder, storage)
    return TarImages(shards, storage) if shards else NoImages()


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
