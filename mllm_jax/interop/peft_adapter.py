"""Adapters out, in the format of Hugging Face's peft, beside the model that they stand on."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from mllm_jax.interop.adapter_error import AdapterError
from mllm_jax.interop.equivalents import exportable
from mllm_jax.interop.export import export
from mllm_jax.interop.imported_folder import new_folder
from mllm_jax.interop.model_folder import load_adapted, read_virtual_tokens
from mllm_jax.interop.peft_virtual_tokens import export_virtual_tokens
from mllm_jax.interop.rules import INPUTS_FIRST, INPUTS_FIRST_FROM_HEADS, LINEAR, LINEAR_FROM_HEADS, Table, tensors
from mllm_jax.models.layers.low_rank import ADAPTER, DOWN, MAGNITUDE, UP, Adapters, LowRankConfig

PREFIX = "base_model.model."
PLAIN_LAYOUTS = (LINEAR, LINEAR_FROM_HEADS, INPUTS_FIRST, INPUTS_FIRST_FROM_HEADS)
"""Layouts in which an axis of theirs is axes of ours end to end."""


def export_adapter(run: str | Path, base: str | Path, adapter: str | Path, dtype: Any = None) -> None:
    """Write the adapters of a run's last stage as a peft folder, and the model without them as its base.

    They are its virtual tokens, where it has any (low-rank adapters are then merged into the base), or its low-rank
    adapters. What trained beside them (a connector, say) is in the base.

    Args:
        run: a run directory or one checkpoint.
        base: a folder that is not there yet, for the model in Hugging Face format.
        adapter: likewise, for `adapter_config.json` and `adapter_model.safetensors`.
        dtype: number format of the base's weights; adapters are float32.

    Raises:
        FileExistsError: a folder is there already.
        ValueError: the run has no adapters, or peft or transformers cannot express them; the message says why.
    """
    if read_virtual_tokens(run) is not None:
        export_virtual_tokens(run, base, adapter, dtype)
        return
    loaded, adapters, parameters = load_adapted(run)
    family, _ = exportable(loaded)
    modules = _modules(family.table, flatten_dict(loaded.parameters, sep="/"), adapters)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(parameters, sep="/").items()}
    weights: dict[str, np.ndarray] = {}
    for name, (path, index) in modules.items():
        weights |= _weights(name, flat, path, index)
    config = _config({name: adapters[path] for name, (path, _) in modules.items()}, str(Path(base)))
    export(loaded, base, dtype=dtype)
    with new_folder(Path(adapter)) as partial:
        save_file(weights, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _modules(table: Table, leaves: dict[str, Any], adapters: Adapters) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name of a torch module in memory -> path of our linear map, and which of its stacked layers it is."""
    tower = sorted(path for path in adapters if path.startswith("encoder/"))
    if tower:
        raise AdapterError(
            f"{tower[0]} has an adapter, but transformers names the layers of vision towers otherwise in memory than "
            "in files, so that peft would not find it. Export with --merge."
        )
    kernels = {f"{path}/kernel": leaves[f"{path}/kernel"] for path in adapters}
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in tensors(table, kernels)[0]:
        if tensor.joined is not None or tensor.layout not in PLAIN_LAYOUTS:
            raise AdapterError(
                f"peft cannot hold the adapter of {tensor.path.removesuffix('/kernel')}: in transformers its kernel is "
                f"a part of {tensor.name}, or arranged otherwise. Export with --merge."
            )
        module = _in_memory(table, tensor.name).removesuffix(".weight")
        found[module] = (tensor.path.removesuffix("/kernel"), tensor.index)
    return found


def _in_memory(table: Table, name: str) -> str:
    """The name that transformers 5 gives in memory to what files call `name`."""
    moved = re.sub(r"^language_model\.model\.", "language_model.", name)
    candidates = (f"model.{moved}", f"model.{name}")
    return next((each for each in candidates if each != name and table.canonical(each) == name), name)


def _weights(module: str, leaves: dict[str, np.ndarray], path: str, index: tuple[int, ...]) -> dict[str, np.ndarray]:
    down, up = leaves[f"{path}/{ADAPTER}/{DOWN}"][index], leaves[f"{path}/{ADAPTER}/{UP}"][index]
    rank = up.shape[0]
    found = {
        f"{PREFIX}{module}.lora_A.weight": np.ascontiguousarray(down.reshape(-1, rank).T),
        f"{PREFIX}{module}.lora_B.weight": np.ascontiguousarray(up.reshape(rank, -1).T),
    }
    magnitude = leaves.get(f"{path}/{ADAPTER}/{MAGNITUDE}")
    if magnitude is not None:
        found[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitude[index].reshape(-1)
    return found


def _config(modules: dict[str, LowRankConfig], base: str) -> dict[str, Any]:
    """What `adapter_config.json` holds; ranks and scales that differ from the commonest are listed by module."""
    configs = list(modules.values())
    for name in ("rank_stabilised", "decomposed", "dropout"):
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise AdapterError(
                f"peft keeps one value of {name} for all adapters of a model, but these have {sorted(values)}. Export "
                "with --merge."
            )
    rank = Counter(config.rank for config in configs).most_common(1)[0][0]
    alpha = Counter(config.alpha for config in configs).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": configs[0].dropout,
        "use_rslora": configs[0].rank_stabilised,
        "use_dora": configs[0].decomposed,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(modules),
        "rank_pattern": {_exactly(name): each.rank for name, each in modules.items() if each.rank != rank},
        "alpha_pattern": {_exactly(name): each.alpha for name, each in modules.items() if each.alpha != alpha},
    }


def _exactly(module: str) -> str:
    return f"^{re.escape(module)}$"
