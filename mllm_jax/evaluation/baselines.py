"""What a model is asked besides the questions: the same with blank images, and with those of other questions.

How much worse it does says what it takes from the images: with a blank one, how much the words alone give away (and how
foreign a blank image is to it); with another question's, how much depends on seeing the right one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_pipelines.record import ImagePart, Part, Record, Turn
from mllm_jax.evaluation.questions import Question
from mllm_jax.generation.prompts import Prompt
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.models.multimodal import MultimodalConfig

BLANK, SHUFFLED = "blank", "shuffled"

HEADINGS = {BLANK: "blank image", SHUFFLED: "other image"}
"""Of the columns of a table."""


def blank_image(loaded: LoadedModel) -> np.ndarray:
    """Return the image that shows nothing: u8[H, W, 3] in the mean colour of the encoder's normalisation."""
    if not isinstance(loaded.config, MultimodalConfig):
        return np.zeros((0, 0, 3), np.uint8)
    encoder = loaded.config.encoder
    colour = np.rint(np.array(encoder.pixel_mean) * 255).astype(np.uint8)
    return np.broadcast_to(colour, (*encoder.image_size, 3))


def blanked(prompt: Prompt, blank: np.ndarray) -> Prompt:
    """Return the prompt with `blank` in the place of every image, or of every tile of one."""
    return replace(prompt, images=tuple(np.broadcast_to(blank, image.shape) for image in prompt.images))


def with_images_of_another(question: Question, others: Sequence[Question]) -> Question | None:
    """Return the question with the images of the first of the others that has as many, all of them different; None
    where no other question has such images, or the question has none."""
    own = question.images
    for other in others:
        if own and len(other.images) == len(own) and not set(own) & set(other.images):
            return replace(question, record=_with_images(question.record, other.images))
    return None


def _with_images(record: Record, images: Sequence[ImagePart]) -> Record:
    left = iter(images)

    def exchanged(part: Part) -> Part:
        return next(left) if isinstance(part, ImagePart) else part

    turns = (Turn(turn.role, tuple(map(exchanged, turn.parts)), turn.learn) for turn in record.turns)
    return Record(record.key, tuple(turns))
