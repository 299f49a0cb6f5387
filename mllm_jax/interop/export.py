"""Hugging Face folders out: `transformers` loads model, tokenizer and processor from them as they are."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.tokenizer import Tokenizer
from data_pipelines.transforms.chat_template import stop_ids
from data_pipelines.transforms.image import processor_config
from data_pipelines.transforms.jinja import jinja, question_jinja
from data_pipelines.transforms.templates import ChatTemplate, ImageFormat, Special
from mllm_jax.interop.equivalents import exportable
from mllm_jax.interop.families.composite import MultimodalFamily
from mllm_jax.interop.families.family import Family, FamilyError
from mllm_jax.interop.imported_folder import new_folder
from mllm_jax.interop.instruction_tokenizer import instruction_tokenizer_files
from mllm_jax.interop.model_folder import LoadedModel, check_plain
from mllm_jax.interop.weights import save
from mllm_jax.models.connectors.choice import instruction_tokens
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.vit import ViTConfig

SHARD_BYTES = 4 * 1024**3
"""Size from which weights are cut into several files."""


def export(loaded: LoadedModel, folder: str | Path, dtype: Any = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model as a Hugging Face folder.

    A whole model becomes what the first family that it is like is in transformers, with its processor; a language model
    or a vision encoder alone likewise.

    Args:
        loaded: the model.
        folder: a folder that is not there yet.
        dtype: number format of the weights; None: as they are in memory.
        shard_bytes: size of a file of weights, from which there are several and an index.

    Raises:
        FileExistsError: the folder is there already.
        AdapterError: the model has virtual tokens.
        FamilyError: transformers has no model that does the same; the message says why.
        ValueError: it has no tokenizer or image processor that does.
    """
    check_plain(loaded)
    try:
        family, loaded = exportable(loaded)
    except FamilyError as error:
        raise FamilyError(f"{error} `mllm export --format mllm` writes any model as this project's folder.") from error
    files = _files(loaded, family, dtype)
    with new_folder(Path(folder)) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
        save(partial, family.table, loaded.parameters, dtype, shard_bytes)


def _files(loaded: LoadedModel, family: Family[Any], dtype: Any) -> dict[str, bytes]:
    """Everything but the weights (file name to content)."""
    config = family.to_hugging_face(loaded.config)
    formats = {np.dtype(dtype or leaf.dtype).name for leaf in jax.tree.leaves(loaded.parameters)}
    config |= {"dtype": formats.pop() if len(formats) == 1 else "float32"}
    values: dict[str, Any] = {"config.json": config}
    files: dict[str, bytes] = {}
    if loaded.tokenizer is not None and not isinstance(loaded.config, ViTConfig):
        files |= loaded.tokenizer.hugging_face_files(
            _written_template(loaded, loaded.tokenizer, family),
            _token_names(loaded, family),
            names_image_token=not isinstance(family, MultimodalFamily) or family.processor.names_image_token,
        )
        tokens = _token_ids(loaded)
        values["generation_config.json"] = {**tokens, "do_sample": False}
        text = config if isinstance(loaded.config, DecoderConfig) else config.get("text_config", config)
        text |= tokens
    if isinstance(loaded.config, MultimodalConfig):
        assert loaded.tokenizer is not None and isinstance(family, MultimodalFamily)
        config[family.image_token_key] = loaded.tokenizer.image_id
        for key, token in family.token_keys.items():
            if loaded.tokenizer.has_special(token):
                config[key] = loaded.tokenizer.special_id(token)
        values |= _processor(loaded, family)
        files |= _instruction_tokenizer(loaded, family)
    elif isinstance(loaded.config, ViTConfig) and loaded.image_transform is not None:
        transform = processor_config(loaded.image_transform, loaded.config.pixel_mean, loaded.config.pixel_std)
        values["preprocessor_config.json"] = transform
    return files | {name: _json(value) for name, value in values.items()}


def _written_template(loaded: LoadedModel, tokenizer: Tokenizer, family: Family[Any]) -> str | None:
    """The chat template in Jinja; what transformers' processor writes of an image by itself is left to it."""
    template = loaded.chat_template
    if template is None or not isinstance(family, MultimodalFamily):
        return None if template is None else jinja(template, tokenizer)
    assert isinstance(loaded.config, MultimodalConfig)
    if family.processor.template is not None:
        _require_template(family.name, template, family.processor.template, tokenizer)
        return question_jinja(template, tokenizer)
    surrounds = family.processor.surrounds(loaded.config)
    if surrounds is not None:
        if _seen(template.image, loaded.config) != _seen(surrounds, loaded.config):
            raise ValueError(
                f"transformers' processor of {family.name} writes {_spelled(surrounds)} around an image, but "
                f"the model's chat template {template.name!r} has {_spelled(template.image)}; train with a template "
                "that has the same."
            )
        template = template.model_copy(update={"image": template.image.bare})
    return jinja(template, tokenizer, 1 if family.processor.expands_images else image_tokens(loaded.config))


def _token_names(loaded: LoadedModel, family: Family[Any]) -> dict[str, str]:
    """The special tokens that transformers' processor asks the tokenizer for, by its names for them."""
    if not isinstance(family, MultimodalFamily):
        return {}
    assert isinstance(loaded.config, MultimodalConfig) and loaded.tokenizer is not None
    names = family.processor.token_names(loaded.config)
    return {name: token or loaded.tokenizer.image_token for name, token in names.items()}


def _require_template(family: str, found: ChatTemplate, expected: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Checks that a processor which writes prompts by itself writes those that the model was trained with."""
    if found != expected:
        raise ValueError(
            f"transformers' processor of {family} writes prompts of the chat template {expected.name!r} by itself, but "
            f"the model's chat template is {found.name!r}; train with {expected.name!r}."
        )
    behind = [piece.token for piece in expected.user.after_images if isinstance(piece, Special)]
    if behind != [tokenizer.bos_token]:
        raise ValueError(
            f"transformers' processor of {family} writes the tokenizer's start token behind images, which is "
            f"{tokenizer.bos_token!r}, but the chat template {expected.name!r} has {behind[0]!r}; take a tokenizer "
            "whose start token it is."
        )


def _seen(around: ImageFormat, config: MultimodalConfig) -> ImageFormat:
    """What a model's conversations show of a format: nothing between tiles that its images do not have."""
    return around if config.tiling is not None else around.model_copy(update={"tiles": None})


def _spelled(around: ImageFormat) -> str:
    between = () if around.tiles is None else around.tiles.before
    before, tile, after = (
        "".join(piece if isinstance(piece, str) else piece.token or "" for piece in pieces)
        for pieces in (around.before, between, around.after)
    )
    tiles = f" ({tile}... for its tiles)" if tile else ""
    spelled = f"{before}...{after}{tiles}" if before or after else "nothing"
    if around.joined:
        spelled += " (once between two images)"
    return f"{spelled} (and {around.lead!r} before text)" if around.lead else spelled


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


def _processor(loaded: LoadedModel, family: MultimodalFamily) -> dict[str, Any]:
    if loaded.image_transform is None:
        raise ValueError(f"{loaded.source} does not say how images are resized, so no processor can be written.")
    assert isinstance(loaded.config, MultimodalConfig)
    return family.processor.files(loaded.config, loaded.image_transform)


def _instruction_tokenizer(loaded: LoadedModel, family: MultimodalFamily) -> dict[str, bytes]:
    """The files of the tokenizer of instructions, where the family's models read them."""
    folder = family.processor.instruction_folder
    if folder is None:
        return {}
    assert isinstance(loaded.config, MultimodalConfig) and loaded.tokenizer is not None
    if loaded.instruction_tokenizer is None:
        raise ValueError(f"{loaded.source} holds no tokenizer of the instructions that its connector reads.")
    files = instruction_tokenizer_files(
        loaded.instruction_tokenizer,
        instruction_tokens(loaded.config.connector),
        loaded.chat_template,
        loaded.tokenizer,
    )
    return {f"{folder}/{name}": content for name, content in files.items()}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
