"""What the batches of a run are made with: tokenizers, chat templates, and how records become tokens and pixels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from data_pipelines.loader import Loader, Preparation
from data_pipelines.record import Record
from data_pipelines.rendered import RenderedRecord
from data_pipelines.storage import Storage
from data_pipelines.tokenizer import IMAGE_TOKEN, Tokenizer, load_tokenizer
from data_pipelines.transforms.augmentation import AugmentationConfig, augmented
from data_pipelines.transforms.chat_template import render
from data_pipelines.transforms.image import ImageTransformConfig, decode_image, decode_with
from data_pipelines.transforms.instructions import InstructionEncoder, instructed
from data_pipelines.transforms.pairs import CaptionEncoder, render_pair
from data_pipelines.transforms.preferences import render_preference
from data_pipelines.transforms.template_check import check_template
from data_pipelines.transforms.templates import TEMPLATES, ChatTemplate
from data_pipelines.transforms.tile_marks import marked, tile_tokens
from data_pipelines.transforms.tiles import TiledImages
from mllm_jax.batch_form import batch_form
from mllm_jax.config import RunConfig
from mllm_jax.interop.connector_weights import check_connector_weights
from mllm_jax.interop.hub import local_folder
from mllm_jax.interop.instruction_tokenizer import check_vocabulary
from mllm_jax.interop.model_folder import read_tokenizer
from mllm_jax.interop.whole_model import check_whole_model
from mllm_jax.model_choice import ModelChoice, multimodal_config
from mllm_jax.models.connectors.choice import instruction_tokens
from mllm_jax.models.multimodal import MultimodalConfig, slot_features, tile_features
from mllm_jax.pair_stages import caption_encoders
from mllm_jax.run_file import RunFileError
from mllm_jax.training.ingredients import FeedRequest
from mllm_jax.training.stages import StageConfig


@dataclass(frozen=True)
class DataSide:
    """What the batches of a run are made with, and the architecture that says how many tokens an image takes."""

    config: RunConfig
    model: MultimodalConfig
    tokenizer: Tokenizer
    """Of the decoder."""
    instructions: InstructionEncoder | None
    """Of a connector that reads text; None: it reads none."""
    captions: Mapping[str, CaptionEncoder]
    """By the name of every stage that learns from pairs of an image and its text."""

    def preparation(self, stage: StageConfig, storage: Storage) -> Preparation:
        """How a stage makes tokens and pixels of a record; `storage` reads the headers of tiled images."""
        if stage.name in self.captions:
            return _prepared_pairs(self.config.model, self.model, stage, self.captions[stage.name])
        return _prepared_conversations(self.config.model, self.model, self.tokenizer, self.instructions, stage, storage)

    def open_feed(self, request: FeedRequest, preparation: Preparation | None = None) -> Loader:
        """The stream of a stage's batches; another preparation than the stage's own may take its place."""
        stage, data = request.stage, self.config.data
        validation = request.split == "validation"
        mixture = stage.validation.mixture if validation and stage.validation else stage.mixture
        storage = Storage(data.storage)
        preparation = preparation or self.preparation(stage, storage)
        if stage.augmentation is not None and not validation:
            preparation = replace(preparation, augment=_augment(self.config.model, stage.augmentation))
        return Loader(
            config=data.stream(mixture=mixture, row_length=stage.row_length, images_per_row=stage.images_per_row),
            sources=data.sources,
            preparation=preparation,
            rows=stage.rows,
            sharding=request.sharding,
            position=request.position,
            prefetch=data.prefetch,
            threads=data.threads,
            lanes=request.lanes,
            storage=storage,
        )


def data_side(config: RunConfig) -> DataSide:
    """Loads the tokenizers and fits templates and model to them; no weight is read.

    Raises:
        ValueError: a tokenizer that does not fit a template or the embedding, or weights of another architecture.
    """
    names = dict.fromkeys([config.model.chat_template, *(stage.template for stage in config.stages)])
    templates = [TEMPLATES[name] for name in names if name is not None]
    tokenizer = _tokenizer(config.model, templates)
    for template in templates:
        check_template(template, tokenizer)
        marked(template, config.model.tiling, tokenizer)  # Raises where the tiles of an image cannot be marked.
    model = multimodal_config(config.model, tokenizer.vocabulary_size)
    if config.model.weights is not None:
        check_whole_model(config.model.weights, model)
    if config.model.connector_weights is not None:
        check_connector_weights(config.model.connector_weights, model, tokenizer.vocabulary_size)
    instructions = _instruction_encoder(config.model, model)
    captions = caption_encoders(config.stages, model, tokenizer, instructions.tokenizer if instructions else None)
    return DataSide(config, model, tokenizer, instructions, captions)


def _tokenizer(model: ModelChoice, templates: list[ChatTemplate]) -> Tokenizer:
    """The decoder's tokenizer, with the tokens that stand for images and around them."""
    around_images = dict.fromkeys(
        token for template in templates for token in (*template.image.tokens, *tile_tokens(template, model.tiling))
    )
    added = (IMAGE_TOKEN, *around_images)
    if model.tokenizer is None and model.weights is not None:
        return read_tokenizer(model.weights, added)
    path = model.tokenizer or model.decoder.weights
    if path is None:
        raise RunFileError(
            "model.tokenizer: is null, and so are model.weights and model.decoder.weights: name a tokenizer, a whole "
            "model or a decoder folder"
        )
    return load_tokenizer(local_folder(path), added)


def _instruction_encoder(choice: ModelChoice, model: MultimodalConfig) -> InstructionEncoder | None:
    """What turns instructions into the connector's tokens; None where it reads none."""
    if choice.instruction_tokenizer is None:
        return None
    tokenizer = load_tokenizer(local_folder(choice.instruction_tokenizer), added_tokens=())
    check_vocabulary(tokenizer, model.connector, choice.instruction_tokenizer)
    return InstructionEncoder(tokenizer, instruction_tokens(model.connector))


def _augment(choice: ModelChoice, augmentation: AugmentationConfig) -> Callable[[bytes, int], np.ndarray]:
    """Encoded image and seed -> pixels of a changed one."""
    transform = ImageTransformConfig.model_validate(choice.image_transform)

    def augment(data: bytes, seed: int) -> np.ndarray:
        return decode_with(data, transform, lambda pixels: augmented(pixels, augmentation, transform, seed))

    return augment


def _prepared_pairs(
    choice: ModelChoice, model: MultimodalConfig, stage: StageConfig, encode: CaptionEncoder
) -> Preparation:
    """Images beside their texts; no template and no decoder has a part in it."""
    transform = ImageTransformConfig.model_validate(choice.image_transform)
    return Preparation(
        render=lambda record: render_pair(record, encode),
        decode=lambda data: decode_image(data, transform),
        image_tokens=0,
        **batch_form(model, stage)._asdict(),
    )


def _prepared_conversations(
    choice: ModelChoice,
    model: MultimodalConfig,
    tokenizer: Tokenizer,
    instructions: InstructionEncoder | None,
    stage: StageConfig,
    storage: Storage,
) -> Preparation:
    """Conversations, or pairs of them to compare, as the stage's chat template or the model's writes them."""
    tokens = slot_features(model)
    transform = ImageTransformConfig.model_validate(choice.image_transform)
    template, marks = marked(TEMPLATES[stage.template or choice.chat_template], model.tiling, tokenizer)
    tiled = TiledImages(model.tiling, transform, tile_features(model), storage, marks) if model.tiling else None
    laid_out = tiled.layout if tiled else tokens

    def conversation(record: Record) -> RenderedRecord:
        return instructed(render(record, template, tokenizer, laid_out), record, instructions)

    form = batch_form(model, stage)
    compare = partial(render_preference, render=conversation, scored=form.references)
    return Preparation(
        render=compare if form.preferences else conversation,
        decode=lambda data: decode_image(data, transform),
        image_tokens=tokens,
        tiled=tiled,
        **form._asdict(),
    )
