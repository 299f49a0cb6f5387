"""Runs made of run files, on one device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from data_pipelines.loading.loaded_batch import LoadedBatch
from mllm_jax.assemble import make_ingredients
from mllm_jax.checkpoint.checkpointer import CheckpointConfig
from mllm_jax.config import RunConfig
from mllm_jax.interop.model_folder import LoadedModel, load_model
from mllm_jax.parallel.mesh import MeshConfig, make_mesh
from mllm_jax.training.ingredients import Feed, FeedRequest, Ingredients
from mllm_jax.training.metrics import LoggingConfig
from mllm_jax.training.plan import Run
from mllm_jax.training.run import Outcome, run_stages

TINY_RUN = Path(__file__).with_name("tiny_run.yaml")
"""A run file to extend, with a model whose steps take no time."""


class CutShortError(Exception):
    """What ends a run in the middle of it."""


class _CutShortFeed:
    def __init__(self, feed: Feed, left: int) -> None:
        self._feed, self._left = feed, left

    def __next__(self) -> LoadedBatch:
        if not self._left:
            raise CutShortError
        self._left -= 1
        return next(self._feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)


def cut_short(ingredients: Ingredients, stage: str, batches: int) -> Ingredients:
    """The same, but training in a stage ends with `CutShortError` after so many batches."""

    def open_feed(request: FeedRequest) -> Any:
        feed = ingredients.open_feed(request)
        return _CutShortFeed(feed, batches) if (request.split, request.stage.name) == ("train", stage) else feed

    return replace(ingredients, open_feed=open_feed)


def run_of(config: RunConfig, ingredients: Ingredients | None = None, save_every: int = 1000) -> Run:
    """The run of a config, which logs every step."""
    return Run(
        folder=Path(config.output),
        ingredients=ingredients or make_ingredients(config),
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        checkpoint=CheckpointConfig(every=save_every),
        logging=LoggingConfig(every=1, tensorboard=False),
        console=None,
    )


def finished(config: RunConfig) -> LoadedModel:
    """The model that a whole run leaves."""
    assert run_stages(config.stages, run_of(config)) is Outcome.FINISHED
    return load_model(config.output)
