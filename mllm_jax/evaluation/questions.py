"""The questions of a data set: every answer of an assistant is the reference of one question."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data_pipelines.boxes import reference_box
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.sources.choice import source_of_path
from data_pipelines.sources.llava_json import LlavaJsonSource
from data_pipelines.sources.source import Entry, Source
from data_pipelines.sources.webdataset import WebDatasetSource
from data_pipelines.storage import Storage

CAPTION, BOX, ANSWER = "caption", "box", "answer"
"""Kinds of the questions that the data gives none: of image-text pairs, of references that are boxes, of all others."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with the answer that counts as right."""

    key: str
    """Where the question stands: the record's key, and the number of the turn that answers it."""
    kind: str
    record: Record
    """What the model is shown; ends with the user's turn."""
    reference: str

    @property
    def text(self) -> str:
        """The last turn without its images."""
        return "\n".join(part.text for part in self.record.turns[-1].parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Every image in view."""
        return images_of(self.record.turns)

    def answered(self) -> Record:
        """The conversation with the reference as its last turn."""
        answer = Turn("assistant", (TextPart(self.reference),), learn=True)
        unlearned = tuple(Turn(turn.role, turn.parts, learn=False) for turn in self.record.turns)
        return Record(self.record.key, (*unlearned, answer))


def read_questions(
    path: str, storage: Storage, images: str | None = None, history: bool = False, limit: int | None = None
) -> Iterator[Question | Skip]:
    """Yield the questions of a LLaVA JSON(L) file or of image-text shards, and a `Skip` for each bad record.

    Args:
        path: a .json or .jsonl file, a shard pattern or a folder of shards.
        storage: what reads it.
        images: image folder of a JSON file; None: `images/` beside it if it is there, else its own folder.
        history: whether a question is asked after the questions and right answers before it. If not, it is asked alone,
            with every image shown so far.
        limit: yield no more than this many questions.

    Raises:
        FileNotFoundError: there is no such file, shard or image folder.
    """
    source = source_of_path(path, images, storage).open(storage)
    found = (item for shard in range(len(source.shards)) for item in _of_shard(source, shard, storage, history))
    questions = 0
    for item in found:
        if limit is not None and questions == limit:
            return
        questions += isinstance(item, Question)
        yield item


def _of_shard(source: Source, shard: int, storage: Storage, history: bool) -> Iterator[Question | Skip]:
    for entry in source.walk(shard):
        record = source.read(entry)
        if isinstance(record, Skip):
            yield record
            continue
        kinds = _stated_kinds(source, entry, storage, record)
        for number, turn in enumerate(record.turns):
            if turn.role != "assistant" or not number:
                continue
            reference = "\n".join(part.text for part in turn.parts if isinstance(part, TextPart))
            before = record.turns[:number]
            yield Question(
                key=f"{record.key}#{number}",
                kind=kinds[number] or kinds[number - 1] or (BOX if reference_box(reference) else ANSWER),
                record=Record(record.key, before if history else alone(before)),
                reference=reference,
            )


def alone(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the last turn without those before it but with the images they showed, after the system turn if any."""
    *before, asked = turns
    system = tuple(turn for turn in before if turn.role == "system")
    return (*system, Turn(asked.role, (*images_of(before), *asked.parts), learn=False))


def images_of(turns: Sequence[Turn]) -> tuple[ImagePart, ...]:
    """Return every image of some turns, in order."""
    return tuple(part for turn in turns for part in turn.parts if isinstance(part, ImagePart))


def _stated_kinds(source: Source, entry: Entry, storage: Storage, record: Record) -> list[str | None]:
    """The kind that the data gives each turn: the `kind` of the turn, else that of the whole entry."""
    if not isinstance(source, LlavaJsonSource):
        return [CAPTION if isinstance(source, WebDatasetSource) else None] * len(record.turns)
    value: dict[str, Any] = json.loads(storage.read_range(ByteRange(source.shards[entry.shard], *entry.content)))
    whole = value.get("kind")
    said = islice(value["conversations"], len(record.turns))
    return [str(kind) if (kind := turn.get("kind", whole)) is not None else None for turn in said]
