"""From a validated run file to what training works with: model, tokenizer, parameters, streams."""

import logging
from functools import partial
from pathlib import Path

from rich.console import Console

from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.templates import TEMPLATES
from mllm_jax.checkpoint.description import with_instruction_tokenizer
from mllm_jax.checkpoint.layout import RUN_FILE, write_whole
from mllm_jax.config import RunConfig, resolved_yaml
from mllm_jax.data_side import data_side
from mllm_jax.initial_parameters import initial_parameters
from mllm_jax.interop.description import ModelDescription
from mllm_jax.pair_stages import objective_weights
from mllm_jax.parallel.mesh import make_mesh
from mllm_jax.parallel.processes import is_first_process, start_processes
from mllm_jax.parallel.watch import leaving_at_once, watching_others
from mllm_jax.training.ingredients import Ingredients
from mllm_jax.training.plan import Run
from mllm_jax.training.run import Outcome, run_stages
from mllm_jax.training.signals import STOPPED_EXIT_CODE

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
        write_whole(folder / RUN_FILE, resolved_yaml(config))
    return run_stages(config.stages, run)


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
