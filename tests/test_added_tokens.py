"""What a run adds to a tokenizer is said in one place, by which training and planning go."""

from pathlib import Path

import pytest

from mllm_jax.added_tokens import added_tokens
from mllm_jax.config import load_run

CONFIGS = Path(__file__).parents[1] / "configs"

ADDED = {
    "llava15_7b": ("<image>",),
    "flamingo_9b": ("<|endofchunk|>", "<image>"),
    "smolvlm_256m": ("<image>", "<fake_token_around_image>", "<global-img>"),
}


@pytest.mark.parametrize(("name", "first"), ADDED.items(), ids=ADDED)
def test_the_tokens_of_a_recipe_in_the_order_of_the_models_it_follows(name, first):
    found = added_tokens(load_run(CONFIGS / f"{name}.yaml", check_paths=False))
    assert found[: len(first)] == first
    assert len(set(found)) == len(found)
