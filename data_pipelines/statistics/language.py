"""The language of a text, by py3langid (BSD licence, 139 languages, 5 MB, no pickle, no download)."""

import importlib.util
from collections.abc import Callable

UNCLEAR = "und"
"""ISO 639's code for a language that is not known: of texts that are too short to tell, or of no language."""

CONFIDENCE = 0.5
"""Probability below which a language is unclear."""

CHARACTERS = 1000
"""Of a text, how many are looked at."""


def language_identifier() -> Callable[[str], str] | None:
    """From a text to the ISO 639 code of its language, or `UNCLEAR`; None where the library is not installed."""
    if importlib.util.find_spec("py3langid") is None:
        return None
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=CONFIDENCE)
    return lambda text: str(identifier.classify(text[:CHARACTERS])[0])
