"""Where the images that a JSON file names are: in a folder, or in tars."""

import errno
import hashlib
import os
import posixpath
from functools import partial
from typing import Protocol
from urllib.parse import quote

import numpy as np

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange
from data_pipelines.sources.conversation import shown
from data_pipelines.sources.tar_headers import Break, members
from data_pipelines.sources.webdataset import encodable
from data_pipelines.storage import Storage, is_local

_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""Errors that say that there is no such file, however often it is asked for."""

_LONGEST_ADDRESS = 1024
"""Bytes: of the key of an object in s3 and gs at most; web servers refuse addresses not much longer."""


class ImagePlaces(Protocol):
    """Finds an image by the name that a record gives it."""

    def find(self, name: str, key: str) -> ByteRange | Skip: ...


class FolderImages:
    """Images below one folder, local or remote; a path that leads out of it, also through a link, is refused.

    A remote folder is asked for every image when its record is read, as only its store knows whether it is there.
    """

    def __init__(self, folder: str, storage: Storage) -> None:
        self._folder = folder
        self._storage = storage
        self._local = is_local(folder)
        self._root = os.path.realpath(folder) if self._local else folder.rstrip("/")
        if self._local and not os.path.isdir(folder):
            raise FileNotFoundError(f"The image folder {folder} is not there.")

    def find(self, name: str, key: str) -> ByteRange | Skip:
        if _is_address(name):
            return _no_file(name, key)
        if not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
            return Skip("path_escapes" if name else "missing_image", key, f"image {name!r} below {self._folder}")
        if not encodable(name):
            return Skip("missing_image", key, f"no file can be called {name!r}")
        found = self._in_folder(name, key) if self._local else self._in_store(name, key)
        if isinstance(found, ByteRange) and not found.length:
            return Skip("empty_image", key, f"{name!r} has no bytes")
        return found

    def _in_folder(self, name: str, key: str) -> ByteRange | Skip:
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
        return ByteRange(path, 0, size)

    def _in_store(self, name: str, key: str) -> ByteRange | Skip:
        """Raises OSError where the store fails or allows nothing: that says nothing about the image."""
        inner = posixpath.normpath(name)
        if inner == "." or "::" in inner:  # With `::` fsspec chains stores, local files among them.
            return Skip("path_escapes", key, f"image {name!r} below {self._folder}")
        path = f"{self._root}/{quote(inner) if self._root.startswith(('http://', 'https://')) else inner}"
        if len(path.encode()) > _LONGEST_ADDRESS:
            return Skip("missing_image", key, f"no object can be called {name!r}")
        try:
            return ByteRange(path, 0, self._storage.size(path))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            return Skip("missing_image", key, f"no object {name!r} in {self._folder}: {error}")


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
            if _is_address(name):
                return _no_file(name, key)
            return Skip("missing_image", key, f"no member {name!r} in the {len(self._shards)} image tars")
        shard, offset, size = (int(value) for value in self._places[at])
        if size == 0:
            return Skip("empty_image", key, f"member {name!r} has no bytes")
        return ByteRange(self._shards[shard], offset, size)


class NoImages:
    """For conversations that are text alone."""

    def find(self, name: str, key: str) -> ByteRange | Skip:
        if _is_address(name):
            return _no_file(name, key)
        return Skip("missing_image", key, f"image {name!r}, but the source sets neither images nor image_shards")


def open_images(folder: str | None, shards: tuple[str, ...], storage: Storage) -> ImagePlaces:
    """Finds images in a folder, else in tars, else nowhere.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    if folder is not None:
        return FolderImages(folder, storage)
    return TarImages(shards, storage) if shards else NoImages()


def _is_address(name: str) -> bool:
    """Whether what names an image is an address or the image itself, and no file."""
    return "://" in name or name.startswith("data:")


def _no_file(name: str, key: str) -> Skip:
    return Skip("image_is_no_file", key, f"{shown(name)} is not fetched; images are files or in tars")


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
