"""One small interface to every text tokenizer: SentencePiece models and `tokenizer.json` files.

A tokenizer keeps no state between calls and may be shared by threads.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from data_pipelines.tokenizers.reading import (
    AROUND,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    read_source,
    special_token_roles,
)
from data_pipelines.tokenizers.tokenizer_json import (
    adds_prefix_space,
    canonical,
    first_token_added,
    text_only,
    with_special_tokens,
)

IMAGE_TOKEN = "<image>"
"""The token that holds an image's places in a sequence."""

STARTS_WITH_BOS = "starts_with_bos"
PLACEHOLDER = "image_placeholder"


class TokenBoundaryError(ValueError):
    """Two neighbouring texts that the tokenizer would join into one token, so that no boundary lies between them."""


class Tokenizer:
    """Text to token ids and back; special tokens are reached by name only, never by text that spells them."""

    def __init__(self, tokenizer_json: dict[str, Any], config: dict[str, Any]) -> None:
        """See `load_tokenizer`; takes the contents of a `tokenizer.json` and a `tokenizer_config.json`.

        Raises:
            ValueError: a special token that does not map to exactly one id.
        """
        self._json = canonical(tokenizer_json)
        self._config = config
        self._full = _engine(self._json)
        self._inner_text = _engine(text_only(self._json, start=False))
        self._inner_text.encode_special_tokens = True
        self._start_text = self._inner_text
        if adds_prefix_space(self._json):
            self._start_text = _engine(text_only(self._json, start=True))
            self._start_text.encode_special_tokens = True
        self._special_ids = _special_ids(self._json, self._full)
        for role in ("bos_token", "eos_token", "pad_token"):
            if config.get(role) is not None:
                self.special_id(config[role])

    def encode(self, text: str, *, start: bool) -> list[int]:
        """The ids of ordinary text; a text that spells a special token stays text.

        Args:
            start: whether the text begins a sequence (or follows the start token), where SentencePiece models put a
                space before it; elsewhere it continues what stands before.
        """
        engine = self._start_text if start else self._inner_text
        return engine.encode(text, add_special_tokens=False).ids if text else []

    def encode_spans(self, texts: Sequence[str], *, start: bool) -> list[list[int]]:
        """The ids of neighbouring texts, tokenised as one: their concatenation is `encode` of the joined text.

        Each text's ids are those that it adds to the texts before it, so a prompt's ids never depend on the answer.

        Raises:
            TokenBoundaryError: the tokenizer changes the ids of the texts before when a text is added.
        """
        spans: list[list[int]] = []
        before: list[int] = []
        for count in range(1, len(texts) + 1):
            ids = self.encode("".join(texts[:count]), start=start)
            if ids[: len(before)] != before:
                raise TokenBoundaryError(
                    f"this tokenizer joins {''.join(texts[: count - 1])[-20:]!r} with {texts[count - 1][:20]!r} into "
                    "one token, so what is learned has no beginning of its own; use another template or tokenizer."
                )
            spans.append(ids[len(before) :])
            before = ids
        return spans

    def encode_marked(self, text: str) -> list[int]:
        """The ids of text in which special tokens are spelled out, as the exported tokenizer reads it."""
        return self._full.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids outside the vocabulary (an embedding may be padded) are left out."""
        return self._full.decode([int(index) for index in ids], skip_special_tokens=skip_special_tokens)

    def special_id(self, token: str) -> int:
        """The id of a special token.

        Raises:
            ValueError: the tokenizer has no such special token.
        """
        if token not in self._special_ids:
            ordinary = self._full.token_to_id(token) is not None
            found = "it is an ordinary token" if ordinary else "it is not in the vocabulary"
            raise ValueError(
                f"the tokenizer has no special token {token!r}: {found}. Its special tokens are "
                f"{_shortened(sorted(self._special_ids))}. Add it when the tokenizer is loaded, or use another one."
            )
        return self._special_ids[token]

    def name(self, index: int) -> str | None:
        """What the vocabulary calls a token (`▁red`, `Ġred`, `<0xE7>`, `<image>`); None outside of it."""
        return self._full.id_to_token(index)

    def has_special(self, token: str) -> bool:
        return token in self._special_ids

    def swallows_space_behind(self, token: str) -> bool:
        """Whether white space behind a special token is read as a part of it (Phi-3's turn tokens)."""
        return token in self._swallowing

    @cached_property
    def _swallowing(self) -> frozenset[str]:
        return frozenset(entry["content"] for entry in self._json["added_tokens"] if entry.get("rstrip"))

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest id, added tokens included: the rows that an embedding needs at least."""
        return max(self._full.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_token(self) -> str | None:
        return self._config.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self._config.get("eos_token")

    @property
    def bos_id(self) -> int | None:
        return None if self.bos_token is None else self.special_id(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        return None if self.eos_token is None else self.special_id(self.eos_token)

    @property
    def pad_token(self) -> str | None:
        """The padding token; where there is none, the unknown, the end or the first special token takes its place."""
        for role in ("pad_token", "unk_token", "eos_token"):
            if self._config.get(role) is not None and self.has_special(self._config[role]):
                return self._config[role]
        return next(iter(self._special_ids), None)

    @property
    def pad_id(self) -> int:
        return 0 if self.pad_token is None else self.special_id(self.pad_token)

    @property
    def surrounds(self) -> dict[str, str]:
        """The special tokens before (`cls_token`) and after (`sep_token`) a text that stands alone, as far as there
        are any: BERT's tokenizers have both."""
        return {role: self._config[role] for role in AROUND if self.has_special(self._config.get(role, ""))}

    @property
    def image_token(self) -> str:
        """The name of the token that holds an image's places: `<image>`, or what a foreign tokenizer calls it."""
        name: str = self._config.get(PLACEHOLDER, IMAGE_TOKEN)
        return name

    @property
    def image_id(self) -> int:
        """The id of `image_token`.

        Raises:
            ValueError: the tokenizer was loaded without it.
        """
        return self.special_id(self.image_token)

    def with_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """The same tokenizer with special tokens after its vocabulary where they are not in it already."""
        return Tokenizer(with_special_tokens(self._json, [*names]), self._config)

    def with_image_token(self, name: str) -> "Tokenizer":
        """The same tokenizer with another of its special tokens holding the places of images."""
        return Tokenizer(self._json, self._config | ({} if name == self.image_token else {PLACEHOLDER: name}))

    @property
    def starts_with_bos(self) -> bool:
        """Whether a sequence begins with the start token (as LLaMA's do and SmolLM2's do not)."""
        return self.bos_token is not None and bool(self._config.get(STARTS_WITH_BOS))

    @property
    def adds_prefix_space(self) -> bool:
        """Whether text at the start of a sequence gets a space before it that other text does not get."""
        return self._start_text is not self._inner_text

    def files(self) -> dict[str, bytes]:
        """File name to contents; `tokenizer_from_files` reads them back to an equal tokenizer."""
        return {TOKENIZER_JSON: _dumped(self._json), TOKENIZER_CONFIG: _dumped(self._config)}

    def hugging_face_files(
        self,
        chat_template: str | None = None,
        named_tokens: Mapping[str, str] | None = None,
        *,
        names_image_token: bool = True,
    ) -> dict[str, bytes]:
        """File name to contents of everything that `transformers.AutoTokenizer` needs to give the same ids.

        The exported tokenizer adds no start token by itself: the chat template writes it, so that no way of calling the
        processor doubles it.

        Args:
            chat_template: the Jinja text of `data_pipelines.transforms.jinja.jinja`.
            named_tokens: attributes that a processor looks for in the tokenizer beside `image_token`, and their tokens.
            names_image_token: whether the files say which token stands for an image, which few processors do not take.
        """
        roles = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        roles["unk_token"] = self._config.get("unk_token")
        roles = {role: token for role, token in roles.items() if token is not None}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,
            "padding_side": "left",
            STARTS_WITH_BOS: self.starts_with_bos,
        }
        if names_image_token and self.has_special(self.image_token):
            config["extra_special_tokens"] = {"image_token": self.image_token, **(named_tokens or {})}
        if self.image_token != IMAGE_TOKEN:
            config[PLACEHOLDER] = self.image_token
        files = {
            TOKENIZER_JSON: _dumped(self._json),
            TOKENIZER_CONFIG: _dumped(config | roles),
            "special_tokens_map.json": _dumped(roles),
        }
        if chat_template is not None:
            files["chat_template.jinja"] = chat_template.encode("utf-8")
        return files


def load_tokenizer(path: str | Path, added_tokens: tuple[str, ...] = (IMAGE_TOKEN,)) -> Tokenizer:
    """Loads a SentencePiece `.model`, a `tokenizer.json`, or a Hugging Face folder that holds either.

    Args:
        added_tokens: special tokens to add after the vocabulary where they are not in it already.

    Raises:
        FileNotFoundError: there is no tokenizer at the path.
        ValueError: a file that cannot be read, or a special token that does not map to exactly one id.
    """
    path = Path(path)
    try:
        tokenizer_json, config = read_source(path)
        config = special_token_roles(tokenizer_json, config)
        bos = config.get("bos_token")
        if STARTS_WITH_BOS not in config:
            adds_bos = config.get("add_bos_token") or first_token_added(tokenizer_json) == bos
            config[STARTS_WITH_BOS] = bos is not None and bool(adds_bos)
        config.pop("add_bos_token", None)
        roles = [config[role] for role in ("bos_token", "eos_token", "pad_token") if config.get(role) is not None]
        return Tokenizer(with_special_tokens(tokenizer_json, [*roles, *added_tokens]), config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def tokenizer_from_files(files: dict[str, bytes]) -> Tokenizer:
    """The inverse of `Tokenizer.files`."""
    return Tokenizer(json.loads(files[TOKENIZER_JSON]), json.loads(files[TOKENIZER_CONFIG]))


def _engine(tokenizer_json: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json, ensure_ascii=False))
    except Exception as error:  # The library raises bare exceptions for every fault of a file.
        raise ValueError(f"the tokenizers library cannot read this tokenizer.json: {error}") from error


def _special_ids(tokenizer_json: dict[str, Any], engine: tokenizers.Tokenizer) -> dict[str, int]:
    """Special token to id; a declared id that the engine does not give, or a second one, is an error."""
    special: dict[str, int] = {}
    for entry in tokenizer_json["added_tokens"]:
        token, declared = entry["content"], entry["id"]
        if not entry["special"]:
            continue
        ids = sorted({declared, special.get(token, declared), engine.token_to_id(token)})
        read = engine.encode(token, add_special_tokens=False).ids
        if len(ids) != 1 or read != ids:
            raise ValueError(
                f"the special token {token!r} must map to exactly one id, but the file and its vocabulary give {ids} "
                f"and the text {token!r} is read as {read}. Repair `added_tokens` in tokenizer.json."
            )
        special[token] = declared
    return special


def _shortened(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _dumped(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8")
