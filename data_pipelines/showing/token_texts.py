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
    """To show: what it adds to the text before it, or its name."""
    kind: Kind
    adds: str
    """What it adds to the text before it; nothing, where it takes other tokens to be text."""


class TokenTexts:
    """Ids to texts: special tokens and those of single bytes are shown by their names. Each id is decoded once."""

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
            return TokenText(f"<no token {index}>", "unknown", "")
        if self._tokenizer.has_special(name):
            return TokenText(name, "special", name)
        text = self._tokenizer.decode([*self._before, index], skip_special_tokens=False)[self._length :]
        adds = "" if _REPLACEMENT in text else text
        if _BYTE.fullmatch(name) or not adds:
            return TokenText(name, "bytes", adds)
        return TokenText(text, "text", adds)
