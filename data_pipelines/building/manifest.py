"""What a folder of built shards says of itself in `manifest.json`: which shards it has, and their checksums."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"

_CHUNK = 1 << 22


def read_json(path: Path) -> Any:
    """Returns the JSON of a file, or None where there is no such file.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def listed_shards(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each shard by its name, as the manifest of a folder states them; empty without one.

    Raises:
        ValueError: the manifest is none.
    """
    manifest = read_json(folder / MANIFEST)
    try:
        return {} if manifest is None else {str(shard["name"]): str(shard["sha256"]) for shard in manifest["shards"]}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / MANIFEST} lists no shards with their sha256 ({error!r})") from None


class Checksums:
    """Compares shards with the manifests beside them, each of which is read once."""

    def __init__(self) -> None:
        self._listed = lru_cache(maxsize=16)(listed_shards)

    def fault(self, path: Path) -> str | None:
        """Why a shard is not the one that was built, or None; also where no manifest lists it."""
        stated = self._listed(path.parent).get(path.name)
        if stated is None:
            return None
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        found = digest.hexdigest()
        return None if found == stated else f"its SHA-256 is {found}, {path.parent / MANIFEST} states {stated}"
