"""Published vision encoders have as many parameters as transformers gives them; nothing is computed."""

import jax
import pytest
import torch
import transformers

from mllm_jax.interop.families.parts import part_of_config
from mllm_jax.models.parameters import abstract_parameters
from mllm_jax.models.presets import ENCODERS

PUBLISHED = {
    "clip_vit_l14_336": 303_507_456,
    "open_clip_vit_h14": 630_766_080,
    "eva_vit_g14": 985_952_256,
    "siglip_so400m_14_384": 412_987_248,
    "dinov2_giant": 1_136_479_232,
    "internvit_300m_448": 304_012_288,
}
OTHERS = {"clip_vit_b16", "open_clip_vit_bigg14", "siglip2_giant_16_384", "dinov2_small_registers"}


@pytest.mark.parametrize("name", [name for name in ENCODERS if name in PUBLISHED.keys() | OTHERS])
def test_presets_have_the_sizes_of_transformers(name: str) -> None:
    config = part_of_config(ENCODERS[name]).to_hugging_face(ENCODERS[name])
    with torch.device("meta"):
        kind = getattr(transformers, config["architectures"][0])
        theirs = kind(transformers.AutoConfig.for_model(**config))
    # A mask token serves pre-training alone and is no parameter of ours.
    expected = sum(each.numel() for path, each in theirs.named_parameters() if not path.endswith("mask_token"))
    found = sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(ENCODERS[name])))
    assert found == expected == PUBLISHED.get(name, expected)
