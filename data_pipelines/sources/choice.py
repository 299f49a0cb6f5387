"""Every kind of source behind one config field."""

import os
from typing import Annotated

from pydantic import Field

from data_pipelines.sources.llava_json import LlavaJsonConfig
from data_pipelines.sources.preference_json import PreferenceJsonConfig
from data_pipelines.sources.webdataset import WebDatasetConfig

SourceConfig = Annotated[WebDatasetConfig | LlavaJsonConfig | PreferenceJsonConfig, Field(discriminator="kind")]
"""Each kind has `open(storage) -> Source`."""


def source_of_path(path: str, images: str | None = None) -> WebDatasetConfig | LlavaJsonConfig:
    """Returns the source that a path alone describes: tar shards, or a LLaVA JSON(L) file.

    Args:
        path: shards (any pattern), a folder of shards, or a file that ends in .json or .jsonl.
        images: image folder of a JSON file; None: `images/` beside it if it is there, else its own folder.
    """
    if path.endswith((".json", ".jsonl")):
        return LlavaJsonConfig(files=path, images=images or image_folder(path))
    return WebDatasetConfig(shards=os.path.join(path, "*.tar") if os.path.isdir(path) else path)


def image_folder(path: str) -> str:
    """Returns where the images of a JSON file are when nothing says so: `images/` beside it, or its own folder."""
    folder = os.path.dirname(path) or "."
    beside = os.path.join(folder, "images")
    return beside if os.path.isdir(beside) else folder
