"""Any model as this project's own folder, also one that no class of transformers can hold."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mllm_jax.interop.imported_folder import write_imported
from mllm_jax.interop.model_folder import LoadedModel, check_plain


def export_own(loaded: LoadedModel, folder: str | Path, dtype: Any = None) -> None:
    """Write a model as a folder that `load_model` reads (docs/folder.md), one parameter on the host at a time.

    Args:
        loaded: the model.
        folder: a folder that is not there yet.
        dtype: number format of the weights; None: as they are in memory.

    Raises:
        FileExistsError: the folder is there already.
        AdapterError: the model has virtual tokens.
    """
    check_plain(loaded)
    parameters = flatten_dict(loaded.parameters, sep="/")
    arrays = ((path, _on_host(array, dtype)) for path, array in sorted(parameters.items()))
    write_imported(Path(folder), loaded.description, arrays, loaded.tokenizer, loaded.instruction_tokenizer)


def _on_host(array: jax.Array, dtype: Any) -> np.ndarray:
    return np.asarray(array if dtype is None else array.astype(dtype))
