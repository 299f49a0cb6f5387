"""This project's own folder: `mllm_model.json`, `parameters/` with one file a parameter, `tokenizer/`, and
`instruction_tokenizer/` where the connector reads instructions.

A parameter's file is named by its path, with dots for slashes, so that any of them can be read, checked or replaced
without the others.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16", which safetensors asks it for)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipelines.tokenizer import Tokenizer, tokenizer_from_files
from mllm_jax.interop.description import FILE_NAME, ModelDescription, write_description
from mllm_jax.interop.safetensors_folder import WeightsError

PARAMETERS = "parameters"
TOKENIZERS = ("tokenizer", "instruction_tokenizer")
"""The folders of the decoder's tokenizer and of the connector's."""
SUFFIX = ".safetensors"
BLOCK = re.compile(r"(?:^|/|_)blocks(_\d+)/")
"""In the path of a parameter of one block of an unscanned stack: its number, with the underscore."""


def is_imported_folder(folder: Path) -> bool:
    """Whether the folder is one that `write_imported` made."""
    return (folder / FILE_NAME).is_file()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its name only once it is filled: it appears whole or not at all.

    Raises:
        FileExistsError: the folder is there already and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; give a folder that is not, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_imported(
    folder: Path,
    description: ModelDescription,
    parameters: Iterable[tuple[str, np.ndarray]],
    tokenizer: Tokenizer | None,
    instruction_tokenizer: Tokenizer | None = None,
) -> None:
    """Write a folder; `parameters` are paths (with slashes) and arrays, taken one at a time.

    Raises:
        FileExistsError: the folder is there already.
    """
    with new_folder(folder) as partial:
        write_description(partial, description)
        (partial / PARAMETERS).mkdir()
        for path, array in parameters:
            save_file({path: np.ascontiguousarray(array)}, partial / PARAMETERS / file_name(path))
        for place, each in zip(TOKENIZERS, (tokenizer, instruction_tokenizer), strict=True):
            if each is not None:
                (partial / place).mkdir()
                for name, content in each.files().items():
                    (partial / place / name).write_bytes(content)


def file_name(path: str) -> str:
    """Return the name of a parameter's file."""
    return path.replace("/", ".") + SUFFIX


def stored_paths(folder: Path) -> set[str]:
    """Return the paths of the parameters in a folder."""
    names = (file.name for file in (folder / PARAMETERS).glob(f"*{SUFFIX}"))
    return {name.removesuffix(SUFFIX).replace(".", "/") for name in names}


def read_parameter(folder: Path, path: str) -> np.ndarray:
    """Read one parameter; a stack of blocks is cut or joined where the folder holds it the other way.

    Raises:
        WeightsError: its file is missing, damaged or holds something else.
    """
    if _file(folder, path).is_file():
        return _read(folder, path)
    block = BLOCK.search(path)
    if block is not None:
        stacked = f"{path[: block.start(1)]}{path[block.end(1) :]}"
        return _read(folder, stacked, int(block[1].removeprefix("_")))
    layers = 0
    while _file(folder, _unstacked(path, layers)).is_file():
        layers += 1
    if not layers:
        return _read(folder, path)
    return np.stack([_read(folder, _unstacked(path, layer)) for layer in range(layers)])


def _unstacked(path: str, layer: int) -> str:
    return re.sub(r"(^|/|_)blocks/", rf"\g<1>blocks_{layer}/", path)


def _file(folder: Path, path: str) -> Path:
    return folder / PARAMETERS / file_name(path)


def _read(folder: Path, path: str, layer: int | None = None) -> np.ndarray:
    """One file's parameter, or one layer of it."""
    file = _file(folder, path)
    try:
        with safe_open(file, framework="np") as handle:
            return handle.get_tensor(path) if layer is None else handle.get_slice(path)[layer]
    except (SafetensorError, FileNotFoundError) as error:
        raise WeightsError(f"{file} does not hold the parameter {path}: {error}. Import the model again.") from error


def read_tokenizer(folder: Path, name: str) -> Tokenizer | None:
    """Read one of `TOKENIZERS`, or None where it is not there."""
    if not (folder / name).is_dir():
        return None
    return tokenizer_from_files({file.name: file.read_bytes() for file in (folder / name).iterdir()})
