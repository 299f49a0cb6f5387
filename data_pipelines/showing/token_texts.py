"""What each token of a row says, one by one."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from data_pipelines.tokenizer import Tokenizer

Kind = Literal["text", "special", "bytes", "unknown"]
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\ufffd"
"""What decoders give for bytes that are no text by themselves."""


class TokenText(NamedTuple):
    text: str
    kind: Kind


class TokenTexts:
    """Ids to what they add to the text before them; special tokens and those of single bytes are called by their names.

    Each id is decoded once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Decoders take a space from the beginning of a text, which a token in the middle of a row has.
        self._before = tokenizer.encode("a", start=False)
        self._length = len(tokenizer.decode(self._before, skip_special_tokens=False))
        self._known: dict[int, TokenText] = {}

    def __call__(self, index: int) -> TokenText:
        if index not in self._known:
            self._known[index] = self._read(index)
        return self._known[index]

    def joined(self, ids: Sequence[int]) -> str:
        """The text of tokens together, as the tokenizer decodes it, special tokens too."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _read(self, index: int) -> TokenText:
        name = self._tokenizer.name(index)
        if name is None:
            return TokenText(f"<no token {index}>", "unknown")
        if self._tokenizer.has_special(name):
            return TokenText(name, "special")
        text = self._tokenizer.decode([*self._before, index], skip_special_tokens=False)[self._length :]
        if _BYTE.fullmatch(name) or not text or _REPLACEMENT in text:
            return TokenText(name, "bytes")
        return TokenText(text, "text")
