"""Finds the folder behind `weights:`: a local folder as it is, a hub id through Hugging Face's own cache."""

import re
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form owner/name."""
    return HUB_ID.fullmatch(text) is not None and not text.endswith((".model", ".json"))


def local_folder(folder_or_id: str) -> Path:
    """The folder itself, or the cached snapshot of a hub id, downloaded where it is not cached yet.

    Only safetensors, JSON, tokenizer and template files are downloaded: nothing that would have to be unpickled.

    Raises:
        FileNotFoundError: neither a folder nor a hub id that can be reached.
    """
    path = Path(folder_or_id).expanduser()
    if path.exists():
        return path
    if not is_hub_id(folder_or_id):
        raise FileNotFoundError(f"there is no folder {folder_or_id!r}, and it is not a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(folder_or_id, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"there is no folder {folder_or_id!r}, and as a hub id it cannot be had: {error}. "
            "Download it yourself and give the folder."
        ) from error
