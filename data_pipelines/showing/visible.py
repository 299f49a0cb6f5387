"""Text from data made safe to look at: characters that cannot be seen, or that move others, are spelled out."""

import unicodedata

_SPELLED_OUT = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Controls, formats (among them what turns the direction of text), surrogates, unassigned characters, separators."""
_PICTURES = 0x2400
"""Where Unicode has a picture of each of the first 32 control characters."""


def visible(text: str) -> str:
    """The text with every invisible character spelled out; after the sign of a line break the line does end."""
    return "".join(map(_visible, text))


def quoted(text: str) -> str:
    """The same in one line, between quotation marks."""
    return '"' + visible(text).replace("\n", "") + '"'


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if unicodedata.category(character) not in _SPELLED_OUT:
        return character
    code = ord(character)
    return chr(_PICTURES + code) if code < 32 else f"[U+{code:04X}]"
