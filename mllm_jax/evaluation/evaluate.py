"""Asks a model every question of a data set, and the same model shown blank images or those of other questions."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart
from data_pipelines.storage import Storage
from data_pipelines.transforms.image_error import ImageError
from mllm_jax.evaluation.baselines import BLANK, SHUFFLED, blank_image, blanked, with_images_of_another
from mllm_jax.evaluation.likelihood import losses
from mllm_jax.evaluation.metrics import Result, score_answer
from mllm_jax.evaluation.questions import Question, read_questions
from mllm_jax.generation.answering import Answer, Answerer
from mllm_jax.generation.decode import DecodingConfig
from mllm_jax.generation.prompts import Prompt
from mllm_jax.interop.model_folder import LoadedModel

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
    shuffled: bool = False
    """Ask every question once more with the images of another: how much depends on seeing the right one."""
    loss: bool = True
    """Measure the likelihood of the reference answers too."""
    limit: int | None = Field(default=None, gt=0)
    """Ask no more than this many questions."""


Outcome = tuple[Answer, Result]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and what came of it."""

    question: Question
    answer: Answer
    result: Result
    baselines: dict[str, Outcome] = field(default_factory=dict)
    """By name (see `baselines`), what came of it with other images; a question without images has the same blank."""

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
        return line | {name: _outcome(*outcome) for name, outcome in self.baselines.items()}


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

    def results(self, baseline: str | None = None) -> list[Result]:
        """Of all questions, or of those that a baseline was asked too."""
        if baseline is None:
            return [asked.result for asked in self.asked]
        return [asked.baselines[baseline][1] for asked in self.asked if baseline in asked.baselines]


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
    storage: Storage | None = None,
) -> Evaluation:
    """Ask a model every question of a LLaVA JSON(L) file, or for the caption of every image of shards.

    Args:
        loaded: the model.
        data: the file or the shards; see `read_questions`.
        config: how it is asked.
        images: image folder of a JSON file.
        progress: called with every question once it is scored.
        storage: what reads the data; None: one of the defaults.

    Raises:
        ValueError: a model that cannot be asked, or no question that can be asked at all.
        FileNotFoundError: data that is not there.
    """
    storage = storage or Storage()
    decoding = DecodingConfig(max_new_tokens=config.max_new_tokens, rows=config.rows, pad_rows=True)
    answerer = Answerer(loaded, decoding, storage)
    evaluation = Evaluation(loaded, data, config)
    digest = hashlib.sha256()
    found = read_questions(data, storage, images, config.history, config.limit)
    ready = _ready(answerer, found, storage, evaluation.skipped, digest.update)
    before: list[_Ready] = []
    while group := list(islice(ready, config.rows * BATCHES_AT_ONCE)):
        for asked in _ask(answerer, group, before, config):
            evaluation.asked.append(asked)
            progress(asked)
        before = group
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
        contents = {image: storage.read_image(image.source) for image in item.images}
        try:
            ready = _prepared(answerer, item, contents)
        except ImageError as error:
            skipped[error.cause] += 1
            continue
        if ready is None:
            skipped["too_long"] += 1
            continue
        for content in (item.kind.encode(), item.text.encode(), item.reference.encode(), *contents.values()):
            digest(hashlib.sha256(content).digest())
        yield ready


def _prepared(
    answerer: Answerer, question: Question, contents: Mapping[ImagePart, bytes] | None = None
) -> _Ready | None:
    """What is asked, or None for a question that is too long; raises ImageError for an image that is none."""
    prompt = answerer.prompt(question.record, contents.__getitem__ if contents else None)
    try:
        answerer.check(prompt)
    except ValueError:
        return None
    rendered = answerer.rendered(question.answered())
    answered = replace(prompt, tokens=rendered.tokens, in_answer=rendered.in_answer)
    return _Ready(question, prompt, answered, rendered.supervised)


def _ask(
    answerer: Answerer, group: Sequence[_Ready], before: Sequence[_Ready], config: EvaluationConfig
) -> Iterator[Asked]:
    seen = _outcomes(answerer, group, config)
    baselines: list[dict[str, Outcome]] = [{} for _ in group]
    for name, asked in _baselines(answerer, group, before, config).items():
        for place, outcome in zip(asked, _outcomes(answerer, list(asked.values()), config), strict=True):
            baselines[place][name] = outcome
    for each, outcome, others in zip(group, seen, baselines, strict=True):
        yield Asked(each.question, *outcome, others)


def _baselines(
    answerer: Answerer, group: Sequence[_Ready], before: Sequence[_Ready], config: EvaluationConfig
) -> dict[str, dict[int, _Ready]]:
    """For each baseline, place in the group -> what is asked."""
    found: dict[str, dict[int, _Ready]] = {}
    if config.blank:
        blank = blank_image(answerer.loaded)
        found[BLANK] = {
            place: replace(each, prompt=blanked(each.prompt, blank), answered=blanked(each.answered, blank))
            for place, each in enumerate(group)
        }
    if config.shuffled:
        questions, earlier = [each.question for each in group], [each.question for each in before]
        found[SHUFFLED] = {}
        for place, question in enumerate(questions):
            others = (*questions[place + 1 :], *questions[:place], *earlier)
            other = with_images_of_another(question, others)
            # The tiles of another image may make it too long.
            ready = None if other is None else _prepared(answerer, other)
            if ready is not None:
                found[SHUFFLED][place] = ready
    return found


def _outcomes(answerer: Answerer, group: Sequence[_Ready], config: EvaluationConfig) -> list[Outcome]:
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


def _outcome(answer: Answer, result: Result) -> dict[str, Any]:
    values: dict[str, Any] = {"answer": answer.text, "finished": answer.finished, "correct": result.score.correct}
    if result.score.overlap is not None:
        values["overlap"] = round(result.score.overlap, 4)
    if result.tokens:
        values["loss"] = round(result.loss / result.tokens, 5)
    return values
