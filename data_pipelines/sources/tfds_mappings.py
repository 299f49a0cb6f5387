"""What an example of TensorFlow Datasets is as a conversation: which of its features are image, question and answer.

A feature is named by its path, such as `image` or `captions/text`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.quota import Skip
from data_pipelines.record import ImageBytes, ImagePart, Record, TextPart, Turn
from data_pipelines.sources.conversation import shown
from data_pipelines.sources.webdataset import encodable


class CaptionMapping(Config):
    """An image and its caption."""

    kind: Literal["captions"] = "captions"
    image: str = "image"
    """Path of the image."""
    caption: str
    """Path of the caption, or of a list of captions, of which one is picked by the record's place."""
    prompts: tuple[str, ...] = ()
    """What the user says after the image; one is picked by the record's place. None: the image stands alone."""

    @property
    def paths(self) -> dict[str, str]:
        return {"image": self.image, "caption": self.caption}

    def record(self, example: Mapping[str, Any], key: str, seed: int, names: Sequence[str]) -> Record | Skip:
        captions = _texts(feature(example, self.caption), key, "caption")
        if isinstance(captions, Skip):
            return captions
        asked = (self.prompts[seed % len(self.prompts)],) if self.prompts else ("",)
        return _conversation(example, self.image, key, list(zip(asked, [captions[seed % len(captions)]], strict=True)))


class QuestionMapping(Config):
    """An image, questions and their answers."""

    kind: Literal["vqa"] = "vqa"
    image: str = "image"
    """Path of the image."""
    question: str
    """Path of the question, or of a list of questions that are asked one after the other."""
    answer: str
    """Path of the answer or of several answers to the question; of a list of questions, a list of these."""
    pick: Literal["most_common", "by_place"] = "most_common"
    """Which of several answers is learned: the most common one (of equally common ones the first), or one by the
    record's place."""
    instruction: str = ""
    """How to answer: stands on a line of its own after every question."""

    @property
    def paths(self) -> dict[str, str]:
        return {"image": self.image, "question": self.question, "answer": self.answer}

    def record(self, example: Mapping[str, Any], key: str, seed: int, names: Sequence[str]) -> Record | Skip:
        asked, said = feature(example, self.question), feature(example, self.answer)
        several = _several(asked)
        questions = _texts(asked, key, "question")
        if isinstance(questions, Skip):
            return questions
        if several and not (_several(said) and len(said) == len(asked) == len(questions)):
            return Skip("answer_count", key, f"{len(asked)} questions, but the answers are {shown(said)}")
        turns: list[tuple[str, str]] = []
        for question, given in zip(questions, said if several else [said], strict=True):
            answers = _texts(given, key, "answer")
            if isinstance(answers, Skip):
                return answers
            common = Counter(answers).most_common(1)[0][0]
            answer = common if self.pick == "most_common" else answers[seed % len(answers)]
            turns.append((f"{question}\n{self.instruction}".strip(), answer))
        return _conversation(example, self.image, key, turns)


class ClassMapping(Config):
    """An image and the name of its class, asked for in words."""

    kind: Literal["classification"] = "classification"
    image: str = "image"
    """Path of the image."""
    label: str = "label"
    """Path of the class, a feature of type ClassLabel."""
    questions: tuple[str, ...] = Field(default=("What is in the image?",), min_length=1)
    """One is picked by the record's place."""
    names: dict[str, str] = Field(default={})
    """What is answered for a class, by its name in the data set; of others the name, with spaces for underscores."""

    @property
    def paths(self) -> dict[str, str]:
        return {"image": self.image, "label": self.label}

    def record(self, example: Mapping[str, Any], key: str, seed: int, names: Sequence[str]) -> Record | Skip:
        index = feature(example, self.label)
        if not isinstance(index, int | np.integer) or not 0 <= index < len(names):
            return Skip("no_label", key, f"the label is {shown(index)}, the data set has {len(names)} classes")
        name = names[int(index)]
        answer = self.names.get(name, name.replace("_", " "))
        return _conversation(example, self.image, key, [(self.questions[seed % len(self.questions)], answer)])


TfdsMapping = Annotated[CaptionMapping | QuestionMapping | ClassMapping, Field(discriminator="kind")]
"""Each has `paths`, the features that it reads by their role, and `record(example, key, seed, names)`, in which `seed`
picks among texts and `names` are those of the label's classes."""


def feature(example: Any, path: str) -> Any:
    """Returns the feature at a path, or None where there is no such feature."""
    for name in path.split("/"):
        if not isinstance(example, Mapping):
            return None
        example = example.get(name)
    return example


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _texts(value: Any, key: str, what: str) -> list[str] | Skip:
    """Returns the texts of a feature that is one or several, those that are not blank; at least one."""
    texts = []
    for each in value if _several(value) else [value]:
        if not isinstance(each, bytes | str):
            return Skip("not_text", key, f"{what} is {shown(each)}")
        try:
            text = each.decode("utf-8") if isinstance(each, bytes) else each
        except UnicodeDecodeError as error:
            return Skip("not_utf8", key, f"{what}: {error}")
        if text.strip():
            texts.append(text.strip())
    if not all(map(encodable, texts)):
        return Skip("not_utf8", key, f"{what}: a lone surrogate")
    return texts or Skip(f"empty_{what}", key, "nothing but white space")


def _conversation(example: Mapping[str, Any], image: str, key: str, said: list[tuple[str, str]]) -> Record | Skip:
    """An image, and questions (blank: none) with their answers."""
    data = feature(example, image)
    if not isinstance(data, bytes):
        return Skip("missing_image", key, f"{image} is {shown(data)}")
    if not data:
        return Skip("empty_image", key, "the image has no bytes")
    turns: list[Turn] = []
    for question, answer in said:
        shows = () if turns else (ImagePart(ImageBytes(data)),)
        asks = (TextPart(question),) if question else ()
        turns += [Turn("user", (*shows, *asks), learn=False), Turn("assistant", (TextPart(answer),), learn=True)]
    return Record(key, tuple(turns))
