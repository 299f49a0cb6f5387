"""Opens what a mixture draws from."""

from collections.abc import Mapping
from typing import Any

from data_pipelines.sources.source import Source
from data_pipelines.storage import Storage
from data_pipelines.stream_config import StreamConfig


def open_sources(config: StreamConfig, sources: Mapping[str, Any], storage: Storage) -> dict[str, Source]:
    """Opens the sources that a mixture draws from.

    Raises:
        ValueError: the mixture names a source that is not there.
    """
    unknown = sorted(config.mixture.sources.keys() - sources.keys())
    if unknown:
        raise ValueError(f"The mixture names the sources {unknown}, but the sources are {sorted(sources)}.")
    return {name: sources[name].open(storage) for name in config.names}
