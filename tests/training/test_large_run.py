"""LLaVA-1.5 7B and its variants as they ship: planned whole on a mesh, without a byte of their weights."""

import math
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from mllm_jax.config import load_run
from mllm_jax.model_choice import multimodal_config
from mllm_jax.parallel.mesh import make_mesh
from mllm_jax.training.ingredients import Ingredients
from mllm_jax.training.plan import Run, plan_stages

CONFIGS = Path(__file__).parents[2] / "configs"


def never(request):
    raise AssertionError("a plan makes no parameters and opens no data")


def planned(name: str):
    config = load_run(CONFIGS / name, check_paths=False)
    model = multimodal_config(config.model, tokens=32001)
    ingredients = Ingredients(model, config.model.precision, initial_parameters=never, open_feed=never)
    mesh = make_mesh(config.parallel)
    return plan_stages(config.stages, Run(Path("unused"), ingredients, mesh, config.checkpoint, config.logging, None))


@pytest.fixture(scope="module")
def stages():
    return planned("llava15_7b.yaml")


@pytest.fixture(scope="module")
def adapted_stages():
    return planned("llava15_7b_lora.yaml")


def test_both_stages_train_what_the_recipe_says(stages):
    align, instruct = stages

    assert set(align.abstract.trainable) == {"connector"}
    assert set(instruct.abstract.trainable) == {"connector", "decoder"}
    assert set(instruct.abstract.frozen) == {"encoder"}
    assert {leaf.dtype.name for leaf in flatten_dict(align.abstract.frozen).values()} == {"bfloat16"}


def test_the_low_rank_variant_trains_the_connector_and_adapters_alone(adapted_stages):
    instruct = adapted_stages[1]
    trainable = flatten_dict(instruct.abstract.trainable, sep="/")

    assert all("/adapter/" in path or path.startswith("connector/") for path in trainable)
    # 7 linear maps in each of 32 layers: rank x (inputs + outputs) each.
    maps = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert sum(leaf.size for path, leaf in trainable.items() if "/adapter/" in path) == 32 * 128 * maps
    rates = {name: float(rate) for name, rate in instruct.rates.at(int(0.03 * 5197)).items()}
    assert rates == pytest.approx({"": 2e-4, "connector": 2e-5}, rel=1e-2)


def test_every_parameter_but_the_smallest_is_split_over_all_devices(stages, adapted_stages):
    for stage in (*stages, *adapted_stages):
        for path, leaf in flatten_dict(stage.abstract_parameters(), sep="/").items():
            share = leaf.sharding.shard_shape(leaf.shape)
            assert leaf.size < 100_000 or 8 * math.prod(share) == leaf.size, path
