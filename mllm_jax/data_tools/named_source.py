"""One source of data as a command names it: by its path, or by its name in a run file."""

from pydantic import ValidationError

from data_pipelines.config_class import Config
from data_pipelines.sources.choice import SourceConfig, source_of_path
from data_pipelines.suggestion import suggest
from mllm_jax.config_errors import sentences
from mllm_jax.run_file import RunFileError, read_run_file

_RUN_FILES = (".yaml", ".yml")


class _Sources(Config):
    sources: dict[str, SourceConfig]


def is_run_file(path: str) -> bool:
    return path.endswith(_RUN_FILES)


def source_of(path: str, name: str | None = None, images: str | None = None) -> SourceConfig:
    """Returns the source that is meant; of a run file nothing but that source need be right.

    Args:
        path: a run file, or whatever `source_of_path` takes.
        name: of the source in `data.sources`; only of a run file, and needed there if it has several.
        images: folder of the images that conversations name.

    Raises:
        RunFileError: the run file has no such source, or it is wrong.
        ValueError: options that do not go together.
    """
    if not is_run_file(path):
        if name is not None:
            raise ValueError(f"--source {name} names a source of a run file, but {path} is none")
        return source_of_path(path, images)
    if images is not None:
        raise ValueError("--images goes with a file of conversations; a run file says itself where images are")
    raw = read_run_file(path)
    data = raw.values.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(sources, dict) or not sources:
        raise RunFileError(f"{path}: data.sources: needs at least one source")
    if name is None and len(sources) > 1:
        raise ValueError(f"{path} has several sources: say which (--source NAME), one of {', '.join(sources)}")
    chosen = next(iter(sources)) if name is None else name
    if chosen not in sources:
        known = ", ".join(sources)
        raise RunFileError(
            f"{path}: there is no source {chosen!r}.{suggest(chosen, sources)} data.sources has: {known}"
        )
    values = {"sources": {chosen: sources[chosen]}}
    try:
        return _Sources.model_validate(values).sources[chosen]
    except ValidationError as error:
        raise RunFileError("\n".join(sentences(error, _Sources, raw, ("data",), values))) from None
