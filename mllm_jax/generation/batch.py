"""Answers to one prompt, or to every line of a JSONL file."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipelines.record import Record, TextPart, Turn
from data_pipelines.transforms.image_error import ImageError
from mllm_jax.generation.answering import Answer, Answerer, user_parts
from mllm_jax.generation.chat import image_part
from mllm_jax.generation.prompts import Prompt

LINES_AT_ONCE = 8
"""Batches of rows read ahead, so that prompts of similar length are answered together."""


@dataclass(slots=True)
class FileCounts:
    """What became of the lines of a file."""

    answered: int = 0
    failed: int = 0


def answer_prompt(answerer: Answerer, text: str, images: Sequence[str | Path] = ()) -> Answer:
    """Answer one prompt about images.

    Raises:
        FileNotFoundError: an image file that is not there.
        ImageError: an image that cannot be decoded.
        ValueError: a prompt that does not fit the model.
    """
    return answerer.answer([answerer.prompt(_record("prompt", text, images))])[0]


def answer_file(answerer: Answerer, source: Path, target: Path) -> FileCounts:
    """Answer every line of a JSONL file, in order.

    A line is `{"prompt": text, "image": path or list of paths, "system": text}`; the last two may be missing, other
    fields are handed through. Image paths are relative to the file. What is written is the line with `answer` and
    `finished`, or, for a line that cannot be answered, with `error`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    counts = FileCounts()
    size = answerer.decoding.rows * LINES_AT_ONCE
    with source.open("rb") as lines, target.open("w", encoding="utf-8") as output:
        numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        for group in _groups(numbered, size):
            for result in _answer_group(answerer, group, source):
                counts.failed += "error" in result
                counts.answered += "error" not in result
                output.write(json.dumps(result, ensure_ascii=False) + "\n")
    return counts


def _answer_group(answerer: Answerer, lines: Sequence[tuple[int, bytes]], source: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    prompts: list[tuple[int, Prompt]] = []
    for place, (number, line) in enumerate(lines):
        entry: dict[str, Any] = {}
        try:
            entry = _entry(line)
            prompts.append((place, _prompt(answerer, entry, f"{source}:{number}", source.parent)))
            results.append(entry)
        except (ValueError, FileNotFoundError, ImageError) as error:
            results.append({**entry, "error": f"{source}:{number}: {error}"})
    answers = answerer.answer([prompt for _, prompt in prompts])
    for (place, _), answer in zip(prompts, answers, strict=True):
        results[place] |= {"answer": answer.text, "finished": answer.finished}
    return results


def _entry(line: bytes) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found a {type(entry).__name__}.")
    return entry


def _prompt(answerer: Answerer, entry: dict[str, Any], key: str, folder: Path) -> Prompt:
    if not isinstance(entry.get("prompt"), str):
        raise ValueError('expected a text "prompt".')
    named = entry.get("image") or []
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('"image" should be a path or a list of paths.')
    prompt = answerer.prompt(_record(key, entry["prompt"], [folder / name for name in names], entry.get("system")))
    answerer.check(prompt)
    return prompt


def _record(key: str, text: str, images: Sequence[str | Path], system: str | None = None) -> Record:
    opening = (Turn("system", (TextPart(system),), learn=False),) if system else ()
    asked = Turn("user", user_parts(text, [image_part(path) for path in images]), learn=False)
    return Record(key, (*opening, asked))


def _groups(items: Iterable[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
