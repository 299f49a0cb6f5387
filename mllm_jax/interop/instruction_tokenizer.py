"""The tokenizer of the instructions that a connector reads, in transformers' folders and out of them.

transformers' processor hands it the whole prompt, as the chat template writes it. So what is exported cuts the
instruction out of the prompt itself, in the first steps of its normalizer; they are taken off again on import.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_files
from data_pipelines.tokenizers.reading import AROUND, TOKENIZER_CONFIG, TOKENIZER_JSON
from data_pipelines.transforms.templates import ChatTemplate, Piece
from mllm_jax.interop.processor import read_json
from mllm_jax.models.connectors.choice import ConnectorConfig, text_side

CUT = "(?#cut)"
"""Begins the pattern of every step that is no part of the tokenizer proper: a comment, to the regular expression."""
ANYTHING = r"[\s\S]*"


def read_instruction_tokenizer(folder: Path) -> tuple[Tokenizer, int | None]:
    """The tokenizer in a folder, and the longest text in tokens that its settings allow; None: they do not say.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    files = load_tokenizer(folder, added_tokens=()).files()
    tokenizer_json = json.loads(files[TOKENIZER_JSON])
    steps = [step for step in _steps(tokenizer_json.get("normalizer")) if not _is_cut(step)]
    tokenizer = tokenizer_from_files(files | {TOKENIZER_JSON: _dumped(tokenizer_json | {"normalizer": _joined(steps)})})
    return tokenizer, read_json(folder / TOKENIZER_CONFIG).get("model_max_length")


def check_vocabulary(tokenizer: Tokenizer, connector: ConnectorConfig, source: str) -> None:
    """Raise ValueError where the tokenizer of instructions has more tokens than the connector has word embeddings."""
    text = text_side(connector)
    rows = 0 if text is None else text.vocab_size
    if tokenizer.vocabulary_size > rows:
        raise ValueError(
            f"{source}: the tokenizer of instructions has {tokenizer.vocabulary_size} tokens, but the connector's "
            f"text.vocab_size is {rows}; take the tokenizer that the connector was made for, or more rows."
        )


def instruction_tokenizer_files(
    tokenizer: Tokenizer, length: int, template: ChatTemplate | None, prompts: Tokenizer
) -> dict[str, bytes]:
    """File name to contents of the folder from which transformers makes the tokenizer.

    Args:
        tokenizer: of instructions.
        length: the longest instruction in tokens.
        template: how prompts are written; None: not known, so that a prompt is the instruction and its images.
        prompts: the tokenizer that reads prompts.

    Raises:
        ValueError: the instruction does not stand in prompts of this template.
    """
    files = tokenizer.hugging_face_files(names_image_token=False)
    tokenizer_json = json.loads(files[TOKENIZER_JSON])
    cuts = [
        {"type": "Replace", "pattern": {"Regex": CUT + pattern}, "content": " "} for pattern in _cuts(template, prompts)
    ]
    steps = [*cuts, *_steps(tokenizer_json.get("normalizer"))]
    tokenizer_json |= {"normalizer": _joined(steps), "post_processor": _surrounding(tokenizer)}
    own = {"padding_side": "right", "truncation_side": "left", "model_max_length": length}
    config = json.loads(files[TOKENIZER_CONFIG]) | own | tokenizer.surrounds
    special = json.loads(files["special_tokens_map.json"]) | tokenizer.surrounds
    written = {TOKENIZER_JSON: tokenizer_json, TOKENIZER_CONFIG: config, "special_tokens_map.json": special}
    return {name: _dumped(value) for name, value in written.items()}


def _cuts(template: ChatTemplate | None, prompts: Tokenizer) -> Iterator[str]:
    """Patterns of what is no instruction, in the order in which they are cut.

    Of the turns in a prompt, the last with an image is the one whose text is kept; see
    `data_pipelines.transforms.instructions`.
    """
    image = re.escape(prompts.image_token)
    if template is not None:
        user = _pattern(template.user.before, prompts)
        if template.user.images_only or not user:
            raise ValueError(
                f"chat template {template.name!r} does not show where a user's text begins, so that transformers' "
                "processor cannot find the instruction of an image in a prompt; give the model another template."
            )
        yield rf"\A{ANYTHING}{user}(?=(?:(?!{user})[\s\S])*{image})"
        end = _pattern(template.user.after, prompts) or _pattern(template.assistant.before, prompts)
        if end:
            yield rf"{end}{ANYTHING}\z"
        if template.system is not None and template.system_in_user:
            before, after = (_pattern(pieces, prompts) for pieces in (template.system.before, template.system.after))
            if not (before and after):
                raise ValueError(
                    f"chat template {template.name!r} puts the system's text into the user's turn and does not show "
                    "where it ends, so that transformers' processor cannot find the instruction of an image in a "
                    "prompt; give the model another template."
                )
            yield rf"{before}[\s\S]*?{after}"
    around = template.image if template is not None else None
    before = _pattern(around.before, prompts) if around else ""
    after = _pattern(around.after, prompts) if around else ""
    yield rf"{before}(?:{image})+{after}"


def _pattern(pieces: Sequence[Piece], prompts: Tokenizer) -> str:
    """What matches pieces of a template as they are written, whatever white space is between them."""
    texts = (piece if isinstance(piece, str) else piece.token or _named(piece.role, prompts) for piece in pieces)
    return r"\s*".join(re.escape(text.strip()) for text in texts if text.strip())


def _named(role: str | None, prompts: Tokenizer) -> str:
    """The end token's name; a start token is left out, as some tokenizers do without it."""
    return (prompts.eos_token or "") if role == "eos" else ""


def _surrounding(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The post-processor that puts the tokenizer's own tokens around a text."""
    around = tokenizer.surrounds
    if not around:
        return None
    first, last = ([{"SpecialToken": {"id": around[role], "type_id": 0}}] if role in around else [] for role in AROUND)
    text, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*first, text, *last],
        "pair": [*first, text, *last, other, *last],
        "special_tokens": {
            name: {"id": name, "ids": [tokenizer.special_id(name)], "tokens": [name]} for name in around.values()
        },
    }


def _steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if normalizer is None:
        return []
    return normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]


def _joined(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", "normalizers": steps}


def _is_cut(step: dict[str, Any]) -> bool:
    return step.get("type") == "Replace" and step["pattern"].get("Regex", "").startswith(CUT)


def _dumped(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8")
