"""Virtual tokens out, in the format of peft's prompt tuning, and of its prefix tuning without a projection."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mllm_jax.interop.adapter_error import AdapterError
from mllm_jax.interop.equivalents import exportable
from mllm_jax.interop.export import export
from mllm_jax.interop.imported_folder import new_folder
from mllm_jax.interop.model_folder import LoadedModel, load_model, plain_model
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.virtual_tokens import EMBEDDINGS, KEYS, VALUES, VIRTUAL
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import Parameters


def export_virtual_tokens(run: str | Path, base: str | Path, adapter: str | Path, dtype: Any = None) -> None:
    """Write the virtual tokens of a run's last stage as a peft folder, and the model without them as its base.

    What trained beside them (a connector, low-rank adapters) is in the base.

    Args:
        run: a run directory or one checkpoint.
        base: a folder that is not there yet, for the model in Hugging Face format.
        adapter: likewise, for `adapter_config.json` and `adapter_model.safetensors`.
        dtype: number format of the base's weights; virtual tokens are float32.

    Raises:
        FileExistsError: a folder is there already.
        ValueError: peft or transformers cannot express them; the message says why.
    """
    loaded = load_model(run)
    decoder = _decoder(loaded)
    given = loaded.parameters["decoder"][VIRTUAL]
    plain = plain_model(loaded)
    exportable(plain)
    config = {**_config(decoder, given), "base_model_name_or_path": str(Path(base))}
    weights = {"prompt_embeddings": _embeddings(given)}
    export(plain, base, dtype=dtype)
    with new_folder(Path(adapter)) as partial:
        save_file(weights, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _decoder(loaded: LoadedModel) -> DecoderConfig:
    """The decoder of a model whose tokens transformers reads as we do, where peft puts others before them."""
    assert isinstance(loaded.config, MultimodalConfig)
    decoder = loaded.config.decoder
    for here, found in (
        (decoder.attention == "prefix", "attention in both directions before answers (model.decoder.attention)"),
        (decoder.rotary_sections is not None, "positions in an image's grid (model.decoder.rotary_sections)"),
    ):
        if here:
            raise AdapterError(
                f"{loaded.source} has virtual tokens and {found}, which transformers counts otherwise when peft puts "
                "tokens before the text."
            )
    return decoder


def _config(decoder: DecoderConfig, given: Parameters) -> dict[str, Any]:
    """What `adapter_config.json` holds."""
    prompt = EMBEDDINGS in given
    shared = {
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "num_layers": decoder.layers,
        "num_transformer_submodules": 1,
    }
    if prompt:
        return shared | {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": given[EMBEDDINGS].shape[0],
            "token_dim": decoder.width,
            "num_attention_heads": decoder.heads,
            "prompt_tuning_init": "RANDOM",
        }
    return shared | {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": given[KEYS].shape[1],
        "token_dim": decoder.kv_heads * decoder.head_width,
        "num_attention_heads": decoder.kv_heads,
        "encoder_hidden_size": decoder.kv_heads * decoder.head_width,
        "prefix_projection": False,
    }


def _embeddings(given: Parameters) -> np.ndarray:
    """f32[V, D], or f32[V, L * 2 * K * C]: of every token the key and the value in every layer, end to end."""
    if EMBEDDINGS in given:
        return np.asarray(given[EMBEDDINGS], np.float32)
    both = np.stack([np.asarray(given[name], np.float32) for name in (KEYS, VALUES)], axis=1)
    return np.ascontiguousarray(np.moveaxis(both, 2, 0).reshape(both.shape[2], -1))
