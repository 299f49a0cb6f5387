"""Finding and reading a tokenizer's files, and which of its tokens start, end and pad a sequence."""

import json
from pathlib import Path
from typing import Any

from data_pipelines.tokenizers.sentencepiece_model import tokenizer_json_from_sentencepiece

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
AROUND = ("cls_token", "sep_token")
"""What BERT's tokenizers put before and after a text."""

SETTINGS = (*ROLES, *AROUND, "add_bos_token", "starts_with_bos")

CUSTOMARY = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>"),
    "pad_token": ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
}
"""Special tokens that have a role by custom; used only for a `tokenizer.json` that comes without any config."""


def read_source(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `tokenizer.json` contents and the settings (roles, whether sequences start with the start token) at a path.

    Raises:
        FileNotFoundError: there is no tokenizer at the path.
        ValueError: a file that is not what its name says.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected a tokenizer.json, a .model file or a folder with one."
        )
    file = _tokenizer_file(path) if path.is_dir() else path
    settings = _settings(file.parent)
    if file.suffix == ".model":
        tokenizer, own = tokenizer_json_from_sentencepiece(file.read_bytes(), str(file))
        return _with_declared_tokens(tokenizer, file.parent), own | settings
    tokenizer = _read_json(file)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError(
            f"{file.name} has no model with a vocabulary; expected a tokenizer.json of the tokenizers library."
        )
    return _with_declared_tokens(
        tokenizer | {"added_tokens": tokenizer.get("added_tokens") or []}, file.parent
    ), settings


def special_token_roles(tokenizer_json: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a token for every role that is known: by the settings, else (without any) by custom."""
    if any(settings.get(role) is not None for role in ROLES):
        return dict(settings)
    special = {entry["content"] for entry in tokenizer_json["added_tokens"] if entry["special"]}
    customary = {role: next((name for name in names if name in special), None) for role, names in CUSTOMARY.items()}
    return settings | {role: name for role, name in customary.items() if name is not None}


def _tokenizer_file(folder: Path) -> Path:
    if (folder / TOKENIZER_JSON).exists():
        return folder / TOKENIZER_JSON
    models = sorted(folder.glob("*.model"))
    if len(models) == 1:
        return models[0]
    found = ", ".join(model.name for model in models) or "neither"
    raise FileNotFoundError(
        f"{folder} should hold a tokenizer.json or one SentencePiece .model file, but holds {found}."
    )


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG):
        if (folder / name).exists():
            settings |= {key: value for key, value in _read_json(folder / name).items() if key in SETTINGS}
    for role in (*ROLES, *AROUND):
        if isinstance(settings.get(role), dict):
            settings[role] = settings[role].get("content")
    return {key: settings[key] for key in SETTINGS if settings.get(key) is not None}


def _with_declared_tokens(tokenizer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Adds tokens that only `added_tokens_decoder` of tokenizer_config.json lists, as transformers does."""
    if not (folder / TOKENIZER_CONFIG).exists():
        return tokenizer
    declared = _read_json(folder / TOKENIZER_CONFIG).get("added_tokens_decoder") or {}
    added = [dict(entry) for entry in tokenizer["added_tokens"]]
    known = {entry["content"] for entry in added}
    for index, token in sorted(declared.items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
            entry = flags | {key: token[key] for key in flags if key in token}
            added.append({"id": int(index), "content": token["content"]} | entry)
    return tokenizer | {"added_tokens": added}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file.name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds a JSON {type(value).__name__}; expected an object.")
    return value
