"""How probable a model finds the answers of preference pairs, written beside them for training without a reference."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.quota import Skip
from data_pipelines.record import Record
from data_pipelines.rendered import RenderError
from data_pipelines.sources.choice import image_folder
from data_pipelines.sources.preference_json import (
    REFERENCE_CHOSEN,
    REFERENCE_REJECTED,
    REFERENCE_TOKENS,
    PreferenceJsonConfig,
    PreferenceJsonSource,
)
from data_pipelines.transforms.image_error import ImageError
from data_pipelines.transforms.preferences import render_preference
from mllm_jax.evaluation.likelihood import losses
from mllm_jax.generation.answering import Answerer
from mllm_jax.generation.prompts import Prompt

BATCHES_AT_ONCE = 8
"""Batches of answers read ahead, so that those of similar length are scored together."""


@dataclass(slots=True)
class ScoredFile:
    """What became of the pairs of a file."""

    pairs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Pairs that were left out, by cause."""


@dataclass(frozen=True, slots=True)
class _Ready:
    value: dict[str, Any]
    answered: tuple[tuple[Prompt, np.ndarray], ...]
    """The conversation with the better and with the worse answer, and what is supervised of each."""


def score_pairs(
    answerer: Answerer,
    data: str,
    output: str | Path,
    images: str | None = None,
    progress: Callable[[], None] = lambda: None,
) -> ScoredFile:
    """Write the pairs of a file again, one a line, with the scores of a model; pairs that are bad are left out.

    Args:
        answerer: the model; it reads `decoding.rows` answers at a time, and its storage reads the pairs.
        data: a .json or .jsonl file of preference pairs.
        output: the .jsonl file to write; it is there whole or not at all.
        images: folder of the images; None: `images/` beside the data if it is there, else the data's own folder.
        progress: called with every pair once it is scored.

    Raises:
        FileNotFoundError: there is no such file or image folder.
        ValueError: no pair could be scored.
    """
    scored, target = ScoredFile(), Path(output)
    source = PreferenceJsonConfig(files=data, images=images or image_folder(data)).open(answerer.storage)
    made_by = {"reference_model": answerer.loaded.source, "reference_template": answerer.template.name}
    ready = _ready(answerer, source, scored.skipped)
    target.parent.mkdir(parents=True, exist_ok=True)
    writing = target.with_name(target.name + ".writing")
    with writing.open("w", encoding="utf-8") as file:
        while group := list(islice(ready, max(answerer.decoding.rows * BATCHES_AT_ONCE // 2, 1))):
            for each, scores in zip(group, _scores(answerer, group), strict=True):
                if scores is None:
                    scored.skipped["not_finite"] += 1
                    continue
                file.write(json.dumps(each.value | scores | made_by, ensure_ascii=False) + "\n")
                scored.pairs += 1
                progress()
    if not scored.pairs:
        writing.unlink()
        causes = ", ".join(f"{cause} {count}" for cause, count in scored.skipped.items()) or "the file is empty"
        raise ValueError(f"{data} holds no pair that can be scored: {causes}.")
    os.replace(writing, target)
    return scored


def _ready(answerer: Answerer, source: PreferenceJsonSource, skipped: Counter[str]) -> Iterator[_Ready]:
    """Render pairs and decode their images; those that cannot be are counted."""
    for shard in range(len(source.shards)):
        for entry in source.walk(shard):
            value, record = source.value(entry), source.read(entry)
            if isinstance(value, Skip) or isinstance(record, Skip):
                skipped[record.cause if isinstance(record, Skip) else "bad_json"] += 1
                continue
            try:
                yield _Ready(value, _answered(answerer, record))
            except RenderError as error:
                skipped[error.cause] += 1
            except ImageError as error:
                skipped[f"image_{error.cause}"] += 1


def _answered(answerer: Answerer, record: Record) -> tuple[tuple[Prompt, np.ndarray], ...]:
    pair = render_preference(record, answerer.rendered)
    asked = answerer.prompt(record)
    return tuple(
        (replace(asked, tokens=segment.tokens, in_answer=segment.in_answer), segment.supervised)
        for segment in pair.segments
    )


def _scores(answerer: Answerer, group: Sequence[_Ready]) -> Iterator[dict[str, Any] | None]:
    """What is written beside each pair; None where the model gives no number, as past its learned positions."""
    found = iter(losses(answerer, [answered for each in group for answered in each.answered]))
    for each in group:
        chosen, rejected = -next(found), -next(found)
        tokens = [len(prompt.tokens) for prompt, _ in each.answered]
        there = math.isfinite(chosen) and math.isfinite(rejected)
        scores = {REFERENCE_CHOSEN: chosen, REFERENCE_REJECTED: rejected, REFERENCE_TOKENS: tokens}
        yield scores if there else None
