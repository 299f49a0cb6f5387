"""docs/curves.md says what its files say, of every recipe, and each of them learned something."""

import json
from pathlib import Path

import pytest

from tests.support.benchmark_modules import benchmark

ROOT = Path(__file__).parents[1]
CURVES = ROOT / "docs" / "curves"
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem not in ("demo", "nano"))


def test_the_page_is_what_the_files_say() -> None:
    writer = benchmark("reference_curves")
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(writer.read_files())


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_curves_that_fall_to_what_it_learned(recipe: str) -> None:
    curve = json.loads((CURVES / f"{recipe}.json").read_text(encoding="utf-8"))
    assert (CURVES / f"{recipe}.svg").read_text(encoding="utf-8").startswith("<?xml")
    for stage in curve["stages"]:
        assert stage["held_out"][-1] < stage["held_out"][0], stage["name"]
    scores = curve["stages"][-1]["scores"]
    if curve["right"]:
        assert max(curve["right"][kind] - curve["right_blank"][kind] for kind in curve["right"]) > 0.2
    elif curve["caption_loss"]:
        seen, blank = curve["caption_loss"]
        assert seen < blank - 0.05
    else:
        assert scores["validation_reward_accuracy"] > 0.6
