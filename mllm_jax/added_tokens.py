"""The tokens that a run needs beside those that its tokenizer has."""

from collections.abc import Sequence

from data_pipelines.tokenizer import IMAGE_TOKEN
from data_pipelines.transforms.templates import TEMPLATES, ChatTemplate
from data_pipelines.transforms.tile_marks import tile_tokens
from mllm_jax.config import RunConfig


def run_templates(config: RunConfig) -> list[ChatTemplate]:
    """The chat templates of the model and of all stages, each once."""
    names = dict.fromkeys([config.model.chat_template, *(stage.template for stage in config.stages)])
    return [TEMPLATES[name] for name in names if name is not None]


def added_tokens(config: RunConfig) -> tuple[str, ...]:
    """Tokens between the chunks of a text, the one that stands for an image, and those around images and tiles.

    In the order in which a tokenizer without them gets them, which is OpenFlamingo's, so that its embeddings fit.
    """
    templates: Sequence[ChatTemplate] = run_templates(config)
    between = [token for each in templates for token in each.chunk_tokens]
    around = [token for each in templates for token in (*each.image.tokens, *tile_tokens(each, config.model.tiling))]
    return tuple(dict.fromkeys((*between, IMAGE_TOKEN, *around)))
