"""Decoder presets have the sizes of the published models, as transformers counts their parameters."""

import jax
import pytest

from mllm_jax.models.parameters import abstract_parameters
from mllm_jax.models.presets import DECODERS

PUBLISHED = {
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "vicuna_13b": 13_015_864_320,
    "mistral_7b": 7_241_732_096,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "gemma_2b": 2_506_172_416,
    "gemma2_2b": 2_614_341_888,
    "gemma3_1b": 999_885_952,
    "phi3_mini": 3_821_079_552,
    "gpt2": 124_439_808,
    "opt_125m": 125_239_296,
    "opt_2_7b": 2_651_596_800,
    "opt_6_7b": 6_658_473_984,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_30b_a3b": 30_532_122_624,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes(preset: str) -> None:
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(DECODERS[preset]))) == PUBLISHED[preset]
