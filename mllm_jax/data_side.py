"""What the batches of a run are made with: tokenizers, chat templates, and how records become tokens and pixels."""

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipelines.loader import Loader, Share
from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.preparation import Preparation
from data_pipelines.preparation_description import ConversationTexts, PairTexts, PreparationDescription
from data_pipelines.storage import Storage
from data_pipelines.tokenizer import Tokenizer, load_tokenizer
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.instructions import InstructionEncoder
from data_pipelines.transforms.pairs import CaptionEncoder
from data_pipelines.transforms.template_check import check_template
from data_pipelines.transforms.templates import TEMPLATES
from data_pipelines.transforms.tile_marks import marked
from mllm_jax.added_tokens import added_tokens, run_templates
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
        return self.description(stage).prepare(storage)

    def description(self, stage: StageConfig, *, changed: bool = False, blank: bool = False) -> PreparationDescription:
        """What this is made of.

        Args:
            stage: of the run.
            changed: whether images are changed at random as the stage says.
            blank: whether they are black and none is decoded.
        """
        transform = ImageTransformConfig.model_validate(self.config.model.image_transform)
        augmentation = stage.augmentation if changed else None
        texts = self._pairs(stage) if stage.name in self.captions else self._conversations(stage)
        return PreparationDescription(texts=texts, transform=transform, augmentation=augmentation, blank=blank)

    def open_feed(self, request: FeedRequest, *, blank: bool = False, work: LoaderConfig | None = None) -> Loader:
        """The stream of a stage's batches.

        Args:
            request: which.
            blank: whether images are black and none is decoded.
            work: takes the place of what the run file says works on them.
        """
        stage, data = request.stage, self.config.data
        validation = request.split == "validation"
        mixture = stage.validation.mixture if validation and stage.validation else stage.mixture
        storage = Storage(data.storage)
        # A few batches, again and again: processes would hardly have started when they are over.
        usual = data.loader.model_copy(update={"processes": 0}) if validation else data.loader
        return Loader(
            config=data.stream(mixture=mixture, row_length=stage.row_length, images_per_row=stage.images_per_row),
            sources=data.sources,
            preparation=self.description(stage, changed=not validation, blank=blank).prepare(storage),
            rows=stage.rows,
            share=Share(request.sharding, request.lanes),
            position=request.position,
            work=work or usual,
            storage=storage,
        )

    def _pairs(self, stage: StageConfig) -> PairTexts:
        encode = self.captions[stage.name]
        return PairTexts(tokenizer=encode.tokenizer, length=encode.length, first=encode.first, last=encode.last)

    def _conversations(self, stage: StageConfig) -> ConversationTexts:
        form, instructions = batch_form(self.model, stage), self.instructions
        return ConversationTexts(
            tokenizer=self.tokenizer,
            template=TEMPLATES[stage.template or self.config.model.chat_template],
            image_tokens=slot_features(self.model),
            tiling=self.model.tiling,
            features=tile_features(self.model) if self.model.tiling else (1, 1),
            instruction_tokenizer=instructions.tokenizer if instructions else None,
            instruction_tokens=form.instruction_tokens,
            preferences=form.preferences,
            references=form.references,
        )


def data_side(config: RunConfig) -> DataSide:
    """Loads the tokenizers and fits templates and model to them; no weight is read.

    Raises:
        ValueError: a tokenizer that does not fit a template or the embedding, or weights of another architecture.
    """
    tokenizer = _tokenizer(config.model, added_tokens(config))
    for template in run_templates(config):
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


def _tokenizer(model: ModelChoice, added: tuple[str, ...]) -> Tokenizer:
    """The decoder's tokenizer, with the added tokens."""
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
