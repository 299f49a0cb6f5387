"""Every run file in configs/: planned whole on a mesh without a byte of its weights, and its tiny twin trained."""

import json
import math
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.assemble import train
from mllm_jax.checkpoint.reading import frozen_leaves, latest_stored_step
from mllm_jax.cli import main
from mllm_jax.config import load_run
from mllm_jax.interop.model_folder import load_model
from mllm_jax.model_choice import multimodal_config
from mllm_jax.models.quantised_kernels import quantised_maps
from mllm_jax.models.virtual_tokens import VIRTUAL_PATH
from mllm_jax.parallel.mesh import make_mesh
from mllm_jax.run_file import read_run_file
from mllm_jax.training.ingredients import Ingredients
from mllm_jax.training.plan import Run, plan_stages

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
PUBLISHED = [name for name in RECIPES if name not in ("demo.yaml", "nano.yaml")]

TRAINS = {
    "blip2_opt_2_7b.yaml": [{"encoder", "connector", "objective"}, {"encoder", "connector"}],
    "demo.yaml": [{"encoder", "connector", "decoder"}] * 2,
    "flamingo_3b.yaml": [{"connector", "decoder"}],
    "flamingo_9b.yaml": [{"connector", "decoder"}],
    "instructblip_vicuna_7b.yaml": [{"encoder", "connector"}],
    "llama_adapter_7b.yaml": [{"connector", "decoder"}, {"decoder"}],
    "llava15_13b.yaml": [{"connector"}, {"connector", "decoder"}],
    "llava15_7b.yaml": [{"connector"}, {"connector", "decoder"}],
    "llava15_7b_dpo.yaml": [{"connector", "decoder"}],
    "llava15_7b_dpo_lora.yaml": [{"decoder"}],
    "llava15_7b_lora.yaml": [{"connector"}, {"connector", "decoder"}],
    "llava_next_7b.yaml": [{"connector"}, {"encoder", "connector", "decoder"}],
    "nano.yaml": [{"connector"}, {"connector", "decoder"}],
    "paligemma_3b.yaml": [{"encoder", "connector", "decoder"}] * 2,
    "prismatic_7b.yaml": [{"connector", "decoder"}],
    "smolvlm_256m.yaml": [{"encoder", "connector", "decoder"}] * 2,
}
"""The parts of which something trains, stage by stage."""


def never(request):
    raise AssertionError("a plan makes no parameters and opens no data")


def planned(name: str):
    config = load_run(CONFIGS / name, check_paths=False)
    model = multimodal_config(config.model, tokens=32001)
    ingredients = Ingredients(model, config.model.precision, initial_parameters=never, open_feed=never)
    mesh = make_mesh(config.parallel, jax.devices()[:4])
    return plan_stages(config.stages, Run(Path("unused"), ingredients, mesh, config.checkpoint, config.logging, None))


@pytest.mark.parametrize("name", RECIPES)
def test_what_does_not_train_is_known_beforehand_and_has_no_optimizer_state(name):
    stages = planned(name)
    assert [set(stage.abstract.trainable) for stage in stages] == TRAINS[name]
    for stage in stages:
        frozen = flatten_dict(stage.abstract.frozen, sep="/")
        trainable = flatten_dict(stage.abstract.trainable, sep="/")
        assert not frozen.keys() & trainable.keys()
        for row in stage.summary():
            assert (row.optimizer_bytes > 0) is row.trains, row
        expected = stage.config.optimizer.kind == "adamw" and 2 * sum(leaf.size for leaf in trainable.values())
        moments = [leaf for leaf in jax.tree.leaves(stage.abstract.optimizer_state) if leaf.size > 1]
        assert sum(leaf.size for leaf in moments) == pytest.approx(expected, abs=len(trainable) * 2)


@pytest.mark.parametrize("name", ["llava15_7b.yaml", "llava15_7b_lora.yaml"])
def test_every_parameter_but_the_smallest_is_split_over_all_devices(name):
    for stage in planned(name):
        for path, leaf in flatten_dict(stage.abstract_parameters(), sep="/").items():
            share = leaf.sharding.shard_shape(leaf.shape)
            assert leaf.size < 100_000 or 4 * math.prod(share) == leaf.size, path


def test_frozen_weights_of_large_recipes_are_kept_in_half_the_bytes():
    align = planned("llava15_7b.yaml")[0]
    assert {leaf.dtype.name for leaf in flatten_dict(align.abstract.frozen).values()} == {"bfloat16"}


def test_the_low_rank_recipe_trains_the_connector_and_adapters_alone():
    instruct = planned("llava15_7b_lora.yaml")[1]
    trainable = flatten_dict(instruct.abstract.trainable, sep="/")

    assert all("/adapter/" in path or path.startswith("connector/") for path in trainable)
    # 7 linear maps in each of 32 layers: rank x (inputs + outputs) each.
    maps = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert sum(leaf.size for path, leaf in trainable.items() if "/adapter/" in path) == 32 * 128 * maps
    rates = {name: float(rate) for name, rate in instruct.rates.at(int(0.03 * 5197)).items()}
    assert rates == pytest.approx({"": 2e-4, "connector": 2e-5}, rel=1e-2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tiny_twin_has_the_stages_connector_and_optimizers_of_its_recipe(name):
    recipe, twin = (load_run(CONFIGS / name, variant, check_paths=False) for variant in ((), ("variant=tiny",)))
    assert twin.model.connector.kind == recipe.model.connector.kind
    assert twin.model.encoder.preset == recipe.model.encoder.preset
    assert twin.model.decoder.preset == recipe.model.decoder.preset
    for theirs, own in zip(recipe.stages, twin.stages, strict=True):
        for field in ("name", "template", "mixture", "trainable", "optimizer"):
            assert getattr(theirs, field) == getattr(own, field), field
        assert theirs.objective.kind == own.objective.kind
        assert theirs.groups.keys() == own.groups.keys() and theirs.adapters.keys() == own.adapters.keys()


ON_A_MESH = ("llava15_7b.yaml",)
"""Recipes whose twin is trained on all simulated devices; the others on one, which is quicker."""


def test_a_twin_trains_adapters_and_virtual_tokens_on_a_base_in_eight_bits(small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(small_demo)
    monkeypatch.setattr("mllm_jax.assemble.make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    soft = {"kind": "prompt_tuning", "count": 4, "text": "What colour is it?"}
    changes = ["variant=tiny", f"output={tmp_path}", "data.lanes=2", "model.precision.frozen=int8"]
    changes += [f"stages.{stage}.{change}" for stage in ("align", "instruct") for change in ("steps=2", "rows=2")]
    changes += [f"stages.instruct.adapters.soft={json.dumps(soft)}"]
    assert train(load_run(CONFIGS / "llava15_7b_lora.yaml", changes)) == 0
    stored = latest_stored_step(tmp_path)
    maps = quantised_maps(unflatten_dict(dict(frozen_leaves(stored)), sep="/"))
    assert "decoder/blocks/attention/query" in maps and not any(path.startswith("connector") for path in maps)
    loaded = flatten_dict(load_model(tmp_path).parameters, sep="/")
    assert {leaf.dtype.name for leaf in loaded.values()} == {"float32"}
    assert loaded[f"{VIRTUAL_PATH}embeddings"].shape[0] == 4
    assert main(["export", str(tmp_path), str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter")]) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tiny_twin_trains_and_lowers_its_loss(name, small_demo, tmp_path, monkeypatch):
    """On batches that stay the same; the loop itself compares the frozen parameters' bits, first step and last."""
    monkeypatch.chdir(small_demo)
    if name not in ON_A_MESH:
        monkeypatch.setattr("mllm_jax.assemble.make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    stages = read_run_file(CONFIGS / name).values["stages"]
    changes = ["variant=tiny", f"output={tmp_path}", "data.lanes=2"]
    for stage in stages:
        measured = {"mixture": stage["mixture"], "batches": 2, "every": 2}
        short = ("steps=14", "rows=8", f"validation={json.dumps(measured)}")
        changes += [f"stages.{stage['name']}.{change}" for change in short]
    assert train(load_run(CONFIGS / name, changes)) == 0
    losses, margins = defaultdict(list), defaultdict(list)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "validation_loss" in entry:
            losses[entry["stage"]].append(entry["validation_loss"])
            margins[entry["stage"]].append(entry.get("validation_reward_margin"))
    assert list(losses) == [stage["name"] for stage in stages]
    for stage, (first, *_, last) in losses.items():
        if margins[stage][0] is None:
            assert last < first - 0.01, stage
        else:  # Preference tuning begins at a margin of 0, where two answers are told apart by chance.
            assert last < min(first, math.log(2) - 0.01) and margins[stage][-1] > max(margins[stage][0], 0), stage
