"""From a validated run file to what training works with: model, tokenizer, parameters, streams."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from data_pipelines.loader import Loader, Preparation
from data_pipelines.record import Record
from data_pipelines.rendered import RenderedRecord
from data_pipelines.storage import Storage
from data_pipelines.tokenizer import IMAGE_TOKEN, Tokenizer, load_tokenizer
from data_pipelines.transforms.chat_template import render
from data_pipelines.transforms.image import ImageTransformConfig, decode_image
from data_pipelines.transforms.instructions import InstructionEncoder, instructed
from data_pipelines.transforms.pairs import CaptionEncoder, render_pair
from data_pipelines.transforms.preferences import render_preference
from data_pipelines.transforms.template_check import check_template
from data_pipelines.transforms.templates import TEMPLATES, ChatTemplate
from data_pipelines.transforms.tile_marks import marked, tile_tokens
from data_pipelines.transforms.tiles import TiledImages
from mllm_jax.checkpoint.description import with_instruction_tokenizer
from mllm_jax.checkpoint.layout import write_whole
from mllm_jax.config import RunConfig, resolved_yaml
from mllm_jax.initial_parameters import initial_parameters
from mllm_jax.interop.connector_weights import check_connector_weights
from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.hub import local_folder
from mllm_jax.interop.instruction_tokenizer import check_vocabulary
from mllm_jax.interop.model_folder import read_tokenizer
from mllm_jax.interop.whole_model import check_whole_model
from mllm_jax.model_choice import ModelChoice, multimodal_config
from mllm_jax.models.connectors.choice import instruction_tokens
from mllm_jax.models.multimodal import MultimodalConfig, slot_features, tile_features
from mllm_jax.pair_stages import caption_encoders, objective_weights
from mllm_jax.parallel.mesh import make_mesh
from mllm_jax.parallel.processes import is_first_process, start_processes
from mllm_jax.parallel.watch import leaving_at_once, watching_others
from mllm_jax.run_file import RunFileError
from mllm_jax.training.ingredients import FeedRequest, Ingredients
from mllm_jax.training.objectives.preference import PreferenceConfig
from mllm_jax.training.plan import Run
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.signals import STOPPED_EXIT_CODE
from mllm_jax.training.stages import StageConfig

LOGGER = logging.getLogger("mllm_jax")


def train(config: RunConfig) -> int:
    """Runs the stages of a run; returns the process's exit code."""
    processes = config.processes
    start_processes(timeout_seconds=processes.join_seconds, lost_seconds=processes.lost_seconds)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    LOGGER.setLevel(logging.INFO)
    with watching_others(), leaving_at_once():
        outcome = _run(config)
    return STOPPED_EXIT_CODE if outcome is Outcome.STOPPED else 0


def _run(config: RunConfig) -> Outcome:
    folder = Path(config.output)
    run = Run(
        folder=folder,
        ingredients=make_ingredients(config),
        mesh=make_mesh(config.parallel),
        checkpoint=config.checkpoint,
        logging=config.logging,
        console=Console() if is_first_process() else None,
    )
    if is_first_process():
        write_whole(folder / "run.yaml", resolved_yaml(config))
    return run_stages(config.stages, run)


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

    def preparation(self, stage: StageConfig) -> Preparation:
        """How a stage makes tokens and pixels of a record."""
        if stage.name in self.captions:
            return _prepared_pairs(self.config.model, self.captions[stage.name])
        return _prepared_conversations(self.config.model, self.model, self.tokenizer, self.instructions, stage)

    def open_feed(self, request: FeedRequest) -> Loader:
        """The stream of a stage's batches."""
        stage, data = request.stage, self.config.data
        validation = request.split == "validation"
        mixture = stage.validation.mixture if validation and stage.validation else stage.mixture
        return Loader(
            config=data.stream(mixture=mixture, row_length=stage.row_length, images_per_row=stage.images_per_row),
            sources=data.sources,
            preparation=self.preparation(stage),
            rows=stage.rows,
            sharding=request.sharding,
            position=request.position,
            prefetch=data.prefetch,
            threads=data.threads,
            lanes=request.lanes,
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


def make_ingredients(config: RunConfig) -> Ingredients:
    """Loads the tokenizer, fits templates and model to it, and says how parameters and batches are made.

    Raises:
        ValueError: as `data_side`.
    """
    data = data_side(config)
    model, tokenizer, instructions = data.model, data.tokenizer, data.instructions
    description = ModelDescription(
        model=model,
        chat_template=TEMPLATES[config.model.chat_template],
        image_transform=ImageTransformConfig.model_validate(config.model.image_transform),
    )
    return Ingredients(
        model=model,
        precision=config.model.precision,
        initial_parameters=partial(initial_parameters, config, model),
        open_feed=data.open_feed,
        objective_weights=partial(objective_weights, model),
        token_ids=partial(tokenizer.encode, start=True),
        run={"model": description.model_dump(mode="json"), "run_file": config.model_dump(mode="json")},
        tokenizer_files=with_instruction_tokenizer(
            tokenizer.files(), instructions.tokenizer.files() if instructions else {}
        ),
        seed=config.seed,
    )


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


def _prepared_pairs(choice: ModelChoice, encode: CaptionEncoder) -> Preparation:
    """Images beside their texts; no template and no decoder has a part in it."""
    transform = ImageTransformConfig.model_validate(choice.image_transform)
    return Preparation(
        render=lambda record: render_pair(record, encode),
        decode=lambda data: decode_image(data, transform),
        image_tokens=0,
        image_size=transform.size,
    )


def _prepared_conversations(
    choice: ModelChoice,
    model: MultimodalConfig,
    tokenizer: Tokenizer,
    instructions: InstructionEncoder | None,
    stage: StageConfig,
) -> Preparation:
    """Conversations, or pairs of them to compare, as the stage's chat template or the model's writes them."""
    tokens = slot_features(model)
    transform = ImageTransformConfig.model_validate(choice.image_transform)
    template, marks = marked(TEMPLATES[stage.template or choice.chat_template], model.tiling, tokenizer)
    tiled = TiledImages(model.tiling, transform, tile_features(model), Storage(), marks) if model.tiling else None
    laid_out = tiled.layout if tiled else tokens

    def conversation(record: Record) -> RenderedRecord:
        return instructed(render(record, template, tokenizer, laid_out), record, instructions)

    compared = isinstance(stage.objective, PreferenceConfig)
    scored = isinstance(stage.objective, PreferenceConfig) and stage.objective.reference == "cached"
    return Preparation(
        render=partial(render_preference, render=conversation, scored=scored) if compared else conversation,
        decode=lambda data: decode_image(data, transform),
        image_tokens=tokens,
        image_size=transform.size,
        tiled=tiled,
        instruction_tokens=instructions.length if instructions else 0,
        preferences=compared,
        references=scored,
    )
