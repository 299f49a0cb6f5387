"""Asks a model every question of a data set, and the same model shown blank images."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.storage import Storage
from data_pipelines.transforms.image_error import ImageError
from mllm_jax.evaluation.likelihood import losses
from mllm_jax.evaluation.metrics import Result, score_answer
from mllm_jax.evaluation.questions import Question, read_questions
from mllm_jax.generation.answering import Answer, Answerer
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.generation.prompts import Prompt
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.models.multimodal import MultimodalConfig

BATCHES_AT_ONCE = 8
"""Batches of questions read ahead, so that those of similar length are answered together."""


class EvaluationConfig(Config):
    """How a model is asked; answers are always greedy."""

    rows: int = Field(default=32, gt=0)
    """Questions answered at once."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Longest answer in tokens."""
    history: bool = False
    """Ask each question after the questions and right answers before it; if not, alone with the images shown so far."""
    blank: bool = True
    """Ask every question once more with blank images: what the words alone give away."""
    loss: bool = True
    """Measure the likelihood of the reference answers too."""
    limit: int | None = Field(default=None, gt=0)
    """Ask no more than this many questions."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and what came of it."""

    question: Question
    answer: Answer
    result: Result
    blank_answer: Answer | None = None
    blank_result: Result | None = None

    def to_json(self) -> dict[str, Any]:
        """The line of `answers.jsonl`."""
        line: dict[str, Any] = {
            "key": self.question.key,
            "kind": self.question.kind,
            "question": self.question.text,
            "images": [asdict(image.source) for image in self.question.images],
            "reference": self.question.reference,
            **_outcome(self.answer, self.result),
        }
        if self.blank_answer is not None and self.blank_result is not None:
            line["blank"] = _outcome(self.blank_answer, self.blank_result)
        return line


@dataclass(slots=True)
class Evaluation:
    """Everything that was asked, and what a later reader needs to ask it again."""

    loaded: LoadedModel
    data: str
    config: EvaluationConfig
    asked: list[Asked] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Records and questions that were left out, by cause."""
    data_hash: str = ""
    """SHA-256 of every question asked: its texts, its reference and the bytes of its images."""


@dataclass(frozen=True, slots=True)
class _Ready:
    question: Question
    prompt: Prompt
    answered: Prompt
    supervised: np.ndarray


def evaluate(
    loaded: LoadedModel,
    data: str,
    config: EvaluationConfig,
    images: str | None = None,
    progress: Callable[[Asked], None] = lambda asked: None,
) -> Evaluation:
    """Ask a model every question of a LLaVA JSON(L) file, or for the caption of every image of shards.

    Args:
        loaded: the model.
        data: the file or the shards; see `read_questions`.
        config: how it is asked.
        images: image folder of a JSON file.
        progress: called with every question once it is scored.

    Raises:
        ValueError: a model that cannot be asked, or no question that can be asked at all.
        FileNotFoundError: data that is not there.
    """
    answerer = Answerer(loaded, DecodingConfig(max_new_tokens=config.max_new_tokens, rows=config.rows, pad_rows=True))
    evaluation = Evaluation(loaded, data, config)
    digest = hashlib.sha256()
    storage = Storage()
    found = read_questions(data, storage, images, config.history, config.limit)
    ready = _ready(answerer, found, storage, evaluation.skipped, digest.update)
    while group := list(islice(ready, config.rows * BATCHES_AT_ONCE)):
        for asked in _ask(answerer, group, config):
            evaluation.asked.append(asked)
            progress(asked)
    evaluation.data_hash = digest.hexdigest()
    if not evaluation.asked:
        causes = ", ".join(f"{cause} {count}" for cause, count in evaluation.skipped.items()) or "the data is empty"
        raise ValueError(f"{data} holds no question that can be asked: {causes}.")
    return evaluation


def _ready(
    answerer: Answerer,
    found: Iterator[Question | Skip],
    storage: Storage,
    skipped: Counter[str],
    digest: Callable[[bytes], None],
) -> Iterator[_Ready]:
    """Render questions and decode their images; those that cannot be asked are counted."""
    for item in found:
        if isinstance(item, Skip):
            skipped[item.cause] += 1
            continue
        contents = {image: storage.read_range(image.source) for image in item.images}
        try:
            prompt = answerer.prompt(item.record, contents.__getitem__)
        except ImageError as error:
            skipped[error.cause] += 1
            continue
        try:
            answerer.check(prompt)
        except ValueError:
            skipped["too_long"] += 1
            continue
        rendered = answerer.rendered(item.answered())
        for content in (item.kind.encode(), item.text.encode(), item.reference.encode(), *contents.values()):
            digest(hashlib.sha256(content).digest())
        answered = replace(prompt, tokens=rendered.tokens, in_answer=rendered.in_answer)
        yield _Ready(item, prompt, answered, rendered.supervised)


def _ask(answerer: Answerer, group: Sequence[_Ready], config: EvaluationConfig) -> Iterator[Asked]:
    seen = _outcomes(answerer, group, config)
    if not config.blank:
        for each, (answer, result) in zip(group, seen, strict=True):
            yield Asked(each.question, answer, result)
        return
    blank = blank_image(answerer.loaded)
    blanked = [
        replace(each, prompt=_blanked(each.prompt, blank), answered=_blanked(each.answered, blank)) for each in group
    ]
    for each, first, second in zip(group, seen, _outcomes(answerer, blanked, config), strict=True):
        yield Asked(each.question, *first, *second)


def _outcomes(answerer: Answerer, group: Sequence[_Ready], config: EvaluationConfig) -> list[tuple[Answer, Result]]:
    answers = answerer.answer([each.prompt for each in group])
    measured = losses(answerer, [(each.answered, each.supervised) for each in group]) if config.loss else None
    outcomes = []
    for place, (each, answer) in enumerate(zip(group, answers, strict=True)):
        score = score_answer(answer.text, each.question.reference)
        result = Result(each.question.kind, score)
        if measured is not None:
            result = replace(result, loss=measured[place], tokens=int(each.supervised.sum()))
        outcomes.append((answer, result))
    return outcomes


def blank_image(loaded: LoadedModel) -> np.ndarray:
    """Return the image that shows nothing: u8[H, W, 3] in the mean colour of the encoder's normalisation."""
    if not isinstance(loaded.config, MultimodalConfig):
        return np.zeros((0, 0, 3), np.uint8)
    encoder = loaded.config.encoder
    colour = np.rint(np.array(encoder.pixel_mean) * 255).astype(np.uint8)
    return np.broadcast_to(colour, (*encoder.image_size, 3))


def _blanked(prompt: Prompt, blank: np.ndarray) -> Prompt:
    return replace(prompt, images=tuple(np.broadcast_to(blank, image.shape) for image in prompt.images))


def _outcome(answer: Answer, result: Result) -> dict[str, Any]:
    values: dict[str, Any] = {"answer": answer.text, "finished": answer.finished, "correct": result.score.correct}
    if result.score.overlap is not None:
        values["overlap"] = round(result.score.overlap, 4)
    if result.tokens:
        values["loss"] = round(result.loss / result.tokens, 5)
    return values
