"""Rotary scalings against transformers' own, at lengths below, at and above the original one."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from pydantic import TypeAdapter, ValidationError
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mllm_jax.interop.families.rotary_keys import our_rotary
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.rotary import rotary_frequencies, segment_lengths
from mllm_jax.models.layers.rotary_scaling import Llama3RotaryScaling, OptionalRotaryScaling

ORIGINAL = {"original_max_position_embeddings": 32}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "yarn": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    "yarn with turns": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 5.0, "beta_slow": 2.0, **ORIGINAL},
    "yarn between dimensions": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 5.0, **ORIGINAL},
    "yarn with a given factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7, **ORIGINAL},
    "yarn with two scales": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8, **ORIGINAL},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4],
        "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0],
        **ORIGINAL,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [7, 32, 33, 64, 65, 90])
def test_frequencies_and_magnitude(name: str, length: int) -> None:
    rope = {"rope_theta": 300.0, **SCALINGS[name]}
    sizes = {"hidden_size": 30, "num_attention_heads": 3, "head_dim": 10, "max_position_embeddings": 64}
    theirs = transformers.LlamaConfig(**sizes, rope_parameters=dict(rope))
    expected, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, seq_len=length)
    kinds = ("linear", "dynamic", "llama3", "yarn", "longrope")
    scaling = our_rotary("any", {**sizes, "rope_theta": 1.0, "rope_parameters": rope}, kinds)["rope_scaling"]
    frequencies = rotary_frequencies(10, 300.0, scaling, jnp.full((1, 1), length))
    np.testing.assert_allclose(frequencies.reshape(-1), expected.numpy(), rtol=2e-6)
    assert scaling.magnitude == pytest.approx(magnitude)


def test_a_token_is_turned_by_the_length_of_its_own_segment() -> None:
    segment_ids = jnp.asarray([[1, 1, 1, 2, 2, 0]])
    positions = jnp.asarray([[0, 1, 2, 0, 1, 0]])
    assert segment_lengths(segment_ids, positions).tolist() == [[3, 3, 3, 2, 2, 1]]


def test_llama3_keys_without_a_kind_are_still_read() -> None:
    adapter = TypeAdapter(OptionalRotaryScaling)
    assert adapter.validate_python({"factor": 32.0}) == Llama3RotaryScaling(factor=32.0)
    assert adapter.validate_python({"kind": "linear", "factor": 2.0}).kind == "linear"
    assert adapter.validate_python(None) is None


def test_factors_that_do_not_fit_the_heads_are_refused() -> None:
    scaling = {"kind": "longrope", "short_factors": [1.0], "long_factors": [1.0] * 4, "attention_factor": 1.0}
    with pytest.raises(ValidationError, match=r"rope_scaling.short_factors has 1 factors, but head_width 8 needs 4"):
        DecoderConfig(
            vocab_size=8,
            width=8,
            layers=1,
            heads=1,
            kv_heads=1,
            head_width=8,
            feed_forward_width=8,
            rope_scaling=scaling | {"original_positions": 4},
        )
