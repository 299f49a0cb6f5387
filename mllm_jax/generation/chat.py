"""A conversation with a model: images, history, and answers that appear as they are made."""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.storage import is_local
from mllm_jax.generation.answering import Answerer, user_parts


class ChatSession:
    """The turns said so far; each question is answered with all of them in view."""

    def __init__(self, answerer: Answerer, system: str | None = None) -> None:
        self._answerer = answerer
        self._opening = (Turn("system", (TextPart(system),), learn=False),) if system else ()
        self._turns: tuple[Turn, ...] = self._opening
        self._waiting: tuple[ImagePart, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said so far."""
        return self._turns

    def show(self, image: str | Path) -> None:
        """Put an image before the next question.

        Raises:
            FileNotFoundError: there is no such file.
            ImageError: it is not an image that can be decoded.
        """
        part = image_part(image)
        self._answerer.pixels(part)
        self._waiting += (part,)

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer piece by piece; once it is complete, question and answer join the history.

        Raises:
            ValueError: the conversation has grown too long for the model.
        """
        asked = (*self._turns, Turn("user", user_parts(question, self._waiting), learn=False))
        said = ""
        for piece in self._answerer.stream(self._answerer.prompt(Record("chat", asked))):
            said += piece
            yield piece
        self._turns = (*asked, Turn("assistant", (TextPart(said.strip()),), learn=False))
        self._waiting = ()

    def forget(self) -> None:
        """Begin a new conversation."""
        self._turns = self._opening
        self._waiting = ()


def image_part(path: str | Path) -> ImagePart:
    """Return an image file, or a remote image, as a part of a turn.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if is_local(str(path)) and not Path(path).is_file():
        raise FileNotFoundError(f"there is no image file {path}.")
    return ImagePart(ByteRange(str(path)))
