"""Training a SentencePiece model; the same texts and config give the same bytes."""

import io
from collections.abc import Iterable, Iterator
from typing import Literal

import sentencepiece
from pydantic import Field

from data_pipelines.config_class import Config


class TokenizerTrainingConfig(Config):
    """A SentencePiece model in LLaMA's manner: nothing is normalised away and every text survives a round trip."""

    vocabulary_size: int = Field(default=8192, gt=0)
    """Number of pieces, special tokens and the 256 bytes included."""
    kind: Literal["bpe", "unigram"] = "bpe"
    byte_fallback: bool = True
    """Whether characters outside the vocabulary become bytes instead of `<unk>`."""
    character_coverage: float = Field(default=0.9995, gt=0, le=1)
    """Share of the characters of the texts that get a piece of their own."""
    split_digits: bool = True
    """Whether every digit is a piece of its own."""
    special_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "<image>")
    """Special tokens beside `<unk>`, `<s>`, `</s>` and `<pad>`, which have the ids 0 to 3."""
    max_line_bytes: int = Field(default=1 << 16, gt=0)
    """Longer lines are left out of the training."""


def train_sentencepiece(texts: Iterable[str], config: TokenizerTrainingConfig | None = None) -> bytes:
    """Trains on the lines of the texts and returns the contents of a `.model` file.

    Raises:
        ValueError: there is no text, or the texts cannot fill (or need more than) the vocabulary.
    """
    config = config or TokenizerTrainingConfig()
    lines = _lines(texts)
    first = next(lines, None)
    if first is None:
        raise ValueError("there is no text to train a tokenizer on: every text is empty.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chained(first, lines),
            model_writer=model,
            vocab_size=config.vocabulary_size,
            model_type=config.kind,
            byte_fallback=config.byte_fallback,
            character_coverage=config.character_coverage,
            split_digits=config.split_digits,
            control_symbols=list(config.special_tokens),
            max_sentence_length=config.max_line_bytes,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"SentencePiece cannot train a {config.kind} model of {config.vocabulary_size} pieces on these texts: "
            f"{error} Give it more text or another vocabulary size."
        ) from error
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    return (line for text in texts for line in text.splitlines() if line.strip())


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
