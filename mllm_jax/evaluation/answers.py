"""Reading answers: normalised text."""

import string
import unicodedata


def normalise(text: str) -> str:
    """Fold an answer to what an exact match compares.

    Unicode compatibility form, case, runs of white space and the punctuation at both ends do not count. The signs that
    carry a meaning inside an answer ("3.5", "red & blue") stay.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(string.punctuation + " ")


def exact_match(answer: str, reference: str) -> bool:
    """Say whether two answers are equal after `normalise`; an answer of signs alone is compared as it stands."""
    normalised = normalise(reference)
    if not normalised:
        return answer.strip() == reference.strip()
    return normalise(answer) == normalised
