"""docs/curves.md shows what the twin of every recipe in configs/ becomes, from the curves that are kept beside it."""

import json
from pathlib import Path

import pytest

from mllm_jax.run_file import read_run_file

ROOT = Path(__file__).parents[1]
CURVES, PAGE = ROOT / "docs" / "curves", ROOT / "docs" / "curves.md"
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem not in ("demo", "nano"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_curve_of_the_stages_that_its_twin_has(name):
    curve = json.loads((CURVES / f"{name}.json").read_text())
    stages = read_run_file(ROOT / "configs" / f"{name}.yaml", ("variant=tiny",)).values["stages"]
    expected = [(stage["name"], stage["steps"]) for stage in stages]
    assert [(stage["name"], stage["steps"][-1]) for stage in curve["stages"]] == expected, "run make curves"
    for stage in curve["stages"]:
        assert stage["held_out"][-1] < stage["held_out"][0]
        assert f"| `{name}` | {stage['name']} | {stage['steps'][-1]} |" in PAGE.read_text()
    assert f"(curves/{name}.svg)" in PAGE.read_text() and (CURVES / f"{name}.svg").is_file()


def test_no_curve_is_left_of_a_recipe_that_is_gone():
    assert {path.stem for path in CURVES.iterdir()} == set(RECIPES)
