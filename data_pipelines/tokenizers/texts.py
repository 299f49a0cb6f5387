"""The texts of files, for training a tokenizer: lines, conversations and captions."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.atomic_file import replace_file
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, TextPart
from data_pipelines.sources.choice import source_of_path
from data_pipelines.sources.json_index import load_index
from data_pipelines.sources.source import records
from data_pipelines.storage import Storage
from data_pipelines.tokenizers.training import TokenizerTrainingConfig, train_sentencepiece

IMAGE_MARK = "<image>"


def train_on_files(
    inputs: Sequence[str], output: str, config: TokenizerTrainingConfig, storage: Storage | None = None
) -> Counter[str]:
    """Trains a SentencePiece model on the texts of files and writes it, whole or not at all.

    Args:
        inputs: see `texts_of`.
        output: the file to write.
        config: of the tokenizer.
        storage: what reads the files; None: one of the defaults.

    Returns:
        How many records had no text, by cause.

    Raises:
        FileNotFoundError: an input that is not there.
        ValueError: texts that cannot fill the vocabulary.
    """
    skipped: Counter[str] = Counter()
    reading = storage or Storage()
    texts = (text for path in inputs for text in texts_of(path, skipped, reading))
    model = train_sentencepiece(texts, config)
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, [model])
    return skipped


def texts_of(path: str, skipped: Counter[str], storage: Storage) -> Iterator[str]:
    """Yields the texts of a `.txt` file (its lines), of LLaVA `.json` or `.jsonl`, or of tar shards."""
    if path.endswith((".json", ".jsonl")):
        yield from _conversation_texts(path, skipped, storage)
    elif path.endswith(".tar") or os.path.isdir(path):
        yield from _tar_texts(path, skipped, storage)
    else:
        with open(path, encoding="utf-8") as lines:
            yield from lines


def _conversation_texts(path: str, skipped: Counter[str], storage: Storage) -> Iterator[str]:
    for offset, length in load_index(path, storage, None).tolist():
        try:
            entry = json.loads(storage.read_range(ByteRange(path, offset, length)) if length > 0 else b"")
            turns = [turn["value"] for turn in entry["conversations"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            skipped["bad_record"] += 1
            continue
        yield from (turn.replace(IMAGE_MARK, "") for turn in turns if isinstance(turn, str))


def _tar_texts(path: str, skipped: Counter[str], storage: Storage) -> Iterator[str]:
    for record in records(source_of_path(path, storage=storage).open(storage)):
        if isinstance(record, Skip):
            skipped[record.cause] += 1
            continue
        yield from (part.text for turn in record.turns for part in turn.parts if isinstance(part, TextPart))
