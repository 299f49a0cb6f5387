"""A folder of safetensors files, with or without an index, read and written tensor by tensor."""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SINGLES = (SINGLE, "open_clip_model.safetensors")
"""Names that a file with all tensors has; the first that is there is read."""
# Importing ml_dtypes also teaches NumPy the name "bfloat16", which safetensors asks it for.
FLOATS = {name: np.dtype(kind) for name, kind in (("F64", "f8"), ("F32", "f4"), ("F16", "f2"))}
FLOATS["BF16"] = np.dtype(ml_dtypes.bfloat16)
FORMAT_NAMES = {dtype: name for name, dtype in FLOATS.items()}


class WeightsError(ValueError):
    """Weights that cannot be used as asked; the message names every tensor concerned."""


class SafetensorsFolder:
    """Names, shapes and, one at a time, the tensors of a folder. Use it in a `with` block."""

    def __init__(self, folder: Path):
        """Raises FileNotFoundError (no weights there) or WeightsError (not in safetensors format)."""
        self.folder = folder
        self._files = _tensor_files(folder)
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        self._following: dict[str, str] = {}

    def __enter__(self) -> "SafetensorsFolder":
        opened = {}
        for file in sorted(set(self._files.values())):
            opened[file] = self._stack.enter_context(_opened(self.folder / file))
        held = {file: set(handle.keys()) for file, handle in opened.items()}
        absent = sorted(f"{name} ({file})" for name, file in self._files.items() if name not in held[file])
        if absent:
            self._stack.close()
            raise WeightsError(f"{self.folder / INDEX} names tensors that are not in their files: {', '.join(absent)}.")
        self._handles = {name: opened[file] for name, file in self._files.items()}
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def join(self, name: str, following: str) -> None:
        """Take two tensors for one called `name`: where the first ends on its first axis, the second goes on."""
        self._following[name] = following
        del self._files[following]

    def file(self, name: str) -> str:
        return self._files[name]

    def shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._handles[name].get_slice(name).get_shape())
        if name not in self._following:
            return shape
        return (shape[0] + self.shape(self._following[name])[0], *shape[1:])

    def stored_format(self, name: str) -> str:
        """The format of a tensor as safetensors calls it: F32, BF16, I8, F8_E4M3."""
        return self._handles[name].get_slice(name).get_dtype()

    def float_dtype(self, name: str) -> np.dtype | None:
        """The format of a tensor of floating point numbers that can be loaded, None for another kind."""
        return FLOATS.get(self.stored_format(name))

    def read(self, name: str) -> np.ndarray:
        array = self._handles[name].get_tensor(name)
        return np.concatenate([array, self.read(self._following[name])]) if name in self._following else array


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        handle = safe_open(file, framework="np")
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is not a whole safetensors file ({error}). Download it again, or convert the weights again."
        ) from error
    with handle:
        yield handle


def _tensor_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected a model folder with {SINGLE} or {INDEX}.")
    index = folder / INDEX
    if index.is_file():
        files = json.loads(index.read_text())["weight_map"]
        missing = sorted({file for file in files.values() if not (folder / file).is_file()})
        if missing:
            raise FileNotFoundError(f"{index} lists files that are not in the folder: {', '.join(missing)}.")
        return files
    for name in SINGLES:
        if (folder / name).is_file():
            with _opened(folder / name) as handle:
                return dict.fromkeys(handle.keys(), name)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise WeightsError(
            f"{folder} holds only pickled weights ({', '.join(pickled)}), which could run any code when read. "
            "Convert them to safetensors first: load the model in transformers and call "
            "save_pretrained(folder, safe_serialization=True)."
        )
    raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}.")


class StoredTensor(NamedTuple):
    """One tensor that is to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(folder: Path, shards: Sequence[Sequence[StoredTensor]], arrays: Iterable[np.ndarray]) -> None:
    """Writes shards, then the index; a single shard gets no index.

    `arrays` are those of all shards in this order; each is written before the next is taken. Every file appears whole
    or not at all; the index comes last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    coming = iter(arrays)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        partial = folder / f".{name}.partial"
        with partial.open("wb") as file:
            _write_file(file, shard, coming)
        os.replace(partial, folder / name)
        weight_map.update(dict.fromkeys((tensor.name for tensor in shard), name))
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_file(file: BinaryIO, shard: Sequence[StoredTensor], arrays: Iterator[np.ndarray]) -> None:
    """The format's own writer wants all tensors of a file in memory; this one takes one after another.

    The tensors of the widest numbers come first in the file, so that each begins at a multiple of its numbers' size.
    """
    # transformers refuses a file without this mark.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in sorted(shard, key=lambda tensor: -tensor.dtype.itemsize):
        begin, end = end, end + tensor.nbytes
        kind = FORMAT_NAMES[tensor.dtype]
        header[tensor.name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in shard:
        array = np.ascontiguousarray(next(arrays))
        assert (array.dtype, array.shape) == (tensor.dtype, tensor.shape), tensor
        file.seek(8 + len(text) + header[tensor.name]["data_offsets"][0])
        file.write(array.reshape(-1).view(np.uint8).data)
        del array
