"""LLaVA-1.5 7B as it ships: planned whole on a mesh, without a byte of its weights."""

import math
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.config import load_run
from mllm_jax.model_choice import multimodal_config
from mllm_jax.parallel.mesh import make_mesh
from mllm_jax.training.ingredients import Ingredients
from mllm_jax.training.plan import Run, plan_stages

CONFIG = Path(__file__).parents[2] / "configs" / "llava15_7b.yaml"


def never(request):
    raise AssertionError("a plan makes no parameters and opens no data")


@pytest.fixture(scope="module")
def stages():
    config = load_run(CONFIG, check_paths=False)
    model = multimodal_config(config.model, tokens=32001)
    ingredients = Ingredients(model, config.model.precision, initial_parameters=never, open_feed=never)
    mesh = make_mesh(config.parallel)
    return plan_stages(config.stages, Run(Path("unused"), ingredients, mesh, config.checkpoint, config.logging, None))


def test_both_stages_train_what_the_recipe_says(stages):
    align, instruct = stages

    assert set(align.abstract.trainable) == {"connector"}
    assert set(instruct.abstract.trainable) == {"connector", "decoder"}
    assert set(instruct.abstract.frozen) == {"encoder"}
    assert {leaf.dtype.name for leaf in flatten_dict(align.abstract.frozen).values()} == {"bfloat16"}


def test_every_parameter_but_the_smallest_is_split_over_all_devices(stages):
    for stage in stages:
        for path, leaf in flatten_dict(stage.abstract_parameters(), sep="/").items():
            share = leaf.sharding.shard_shape(leaf.shape)
            assert leaf.size < 100_000 or 8 * math.prod(share) == leaf.size, path
