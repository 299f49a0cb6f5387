"""How commands read remote data that are given a model or plain files: as a run's `data.storage` says."""

from pathlib import Path

from pydantic import ValidationError

from data_pipelines.config_class import Config
from data_pipelines.storage import Storage, StorageConfig
from mllm_jax.checkpoint.layout import RUN_FILE
from mllm_jax.config_errors import sentences
from mllm_jax.run_file import RunFileError, read_run_file

_CHECKPOINT_DEPTH = 4
"""Folders from a checkpoint up to its run directory."""


class _Stored(Config):
    storage: StorageConfig = StorageConfig()


def chosen_storage(run: str | None = None, model: str | None = None) -> Storage:
    """Opens the storage of a run; nothing else of its run file need be right.

    Args:
        run: a run file or a run directory.
        model: where `run` is None: a model, whose own run is meant if it is a run directory or a checkpoint in one; any
            other is read with the defaults.

    Raises:
        FileNotFoundError: `run` is neither.
        RunFileError: its `data.storage` is wrong.
    """
    if run is not None:
        path = Path(run)
        if path.is_dir() and not (path / RUN_FILE).is_file():
            raise FileNotFoundError(f"{run} is no run directory: it holds no {RUN_FILE}")
        return Storage(storage_config(path / RUN_FILE if path.is_dir() else path))
    found = None if model is None else _run_file_of(Path(model))
    return Storage(storage_config(found) if found else None)


def storage_config(run_file: Path) -> StorageConfig:
    """Returns the `data.storage` of a run file, and the defaults where it has none."""
    raw = read_run_file(run_file)
    data = raw.values.get("data")
    values = {"storage": data["storage"]} if isinstance(data, dict) and "storage" in data else {}
    try:
        return _Stored.model_validate(values).storage
    except ValidationError as error:
        raise RunFileError("\n".join(sentences(error, _Stored, raw, ("data",), values))) from None


def _run_file_of(model: Path) -> Path | None:
    folders = (model, *model.absolute().parents[:_CHECKPOINT_DEPTH])
    return next((folder / RUN_FILE for folder in folders if (folder / RUN_FILE).is_file()), None)
