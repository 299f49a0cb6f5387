"""Hugging Face folders out: `transformers` loads model, tokenizer and processor from them as they are."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.transforms.chat_template import stop_ids
from data_pipelines.transforms.image import processor_config
from data_pipelines.transforms.jinja import jinja
from mllm_jax.interop.families.choice import family_of_config
from mllm_jax.interop.families.family import Family, FamilyError
from mllm_jax.interop.imported_folder import new_folder
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.interop.processor import processor_files
from mllm_jax.interop.weights import save
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.positions import resize_positions
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.vit import ViTConfig

SHARD_BYTES = 4 * 1024**3
"""Size from which weights are cut into several files."""


@dataclass(frozen=True)
class _Form:
    """A model in the shape that a family has."""

    family: Family
    loaded: LoadedModel

    def config(self) -> dict[str, Any]:
        return self.family.to_hugging_face(self.loaded.config)


def export(loaded: LoadedModel, folder: str | Path, dtype: Any = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model as a Hugging Face folder.

    A whole model becomes a `LlavaForConditionalGeneration` with its `LlavaProcessor`, a language model or a vision
    encoder alone what its family is in transformers.

    Args:
        loaded: the model.
        folder: a folder that is not there yet.
        dtype: number format of the weights; None: as they are in memory.
        shard_bytes: size of a file of weights, from which there are several and an index.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: transformers has no model, tokenizer or image processor that does the same; the message says why.
    """
    form = _exportable(loaded)
    files = _files(form, dtype)
    with new_folder(Path(folder)) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        save(partial, form.family.table, form.loaded.parameters, dtype, shard_bytes)


def _exportable(loaded: LoadedModel) -> _Form:
    """The model as it is or, if its position table has another size than its images, with the table resized."""
    try:
        return _Form(family_of_config(loaded.config), loaded)
    except FamilyError:
        encoder = _encoder(loaded)
        if encoder is None or encoder.table_grid == encoder.grid:
            raise
        resized = _with_resized_positions(loaded, encoder)
        return _Form(family_of_config(resized.config), resized)


def _encoder(loaded: LoadedModel) -> ViTConfig | None:
    config = loaded.config
    return config.encoder if isinstance(config, MultimodalConfig) else config if isinstance(config, ViTConfig) else None


def _with_resized_positions(loaded: LoadedModel, encoder: ViTConfig) -> LoadedModel:
    own_table = encoder.model_copy(update={"position_grid": None})
    whole = isinstance(loaded.config, MultimodalConfig)
    parameters = loaded.parameters["encoder"] if whole else loaded.parameters
    table = resize_positions(np.asarray(parameters["position_embedding"]), encoder.table_grid, encoder.grid)
    parameters = {**parameters, "position_embedding": table}
    model = loaded.config.model_copy(update={"encoder": own_table}) if whole else own_table
    return replace(
        loaded,
        description=loaded.description.model_copy(update={"model": model}),
        parameters={**loaded.parameters, "encoder": parameters} if whole else parameters,
    )


def _files(form: _Form, dtype: Any) -> dict[str, bytes]:
    """Everything but the weights: file name to content."""
    loaded, config = form.loaded, form.config()
    name = np.dtype(dtype).name if dtype is not None else None
    config |= {"dtype": name} if name else {}
    values: dict[str, Any] = {"config.json": config}
    files: dict[str, bytes] = {}
    if loaded.tokenizer is not None and not isinstance(loaded.config, ViTConfig):
        written = jinja(loaded.chat_template, loaded.tokenizer) if loaded.chat_template else None
        files |= loaded.tokenizer.hugging_face_files(written)
        tokens = _token_ids(loaded)
        values["generation_config.json"] = {**tokens, "do_sample": False}
        text = config if isinstance(loaded.config, DecoderConfig) else config["text_config"]
        text |= tokens
    if isinstance(loaded.config, MultimodalConfig):
        assert loaded.tokenizer is not None
        config["image_token_index"] = loaded.tokenizer.image_id
        values |= _processor(loaded, loaded.config.encoder, config["vision_feature_select_strategy"])
    elif isinstance(loaded.config, ViTConfig) and loaded.image_transform is not None:
        transform = processor_config(loaded.image_transform, loaded.config.pixel_mean, loaded.config.pixel_std)
        values["preprocessor_config.json"] = transform
    return files | {name: _json(value) for name, value in values.items()}


def _token_ids(loaded: LoadedModel) -> dict[str, Any]:
    """The ids that start, end and pad a sequence; every token that may end an answer is an end."""
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    ends = list(stop_ids(loaded.chat_template, tokenizer)) if loaded.chat_template else []
    ends = ends or ([tokenizer.eos_id] if tokenizer.eos_id is not None else [])
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_id,
    }


def _processor(loaded: LoadedModel, encoder: ViTConfig, strategy: str) -> dict[str, Any]:
    if loaded.image_transform is None:
        raise ValueError(f"{loaded.source} does not say how images are resized, so no processor can be written.")
    transform = processor_config(loaded.image_transform, encoder.pixel_mean, encoder.pixel_std)
    return processor_files(transform, encoder, strategy)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
