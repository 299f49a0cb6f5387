"""Rows that only pad a vocabulary have no part in anything, and do not leave the house."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt
from mllm_jax.generation.sampling import SamplingConfig
from mllm_jax.interop.description import ModelDescription
from mllm_jax.interop.equivalents import exportable
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.parameters import Parameters
from tests.support.parameters import drawn_parameters

PADDED = DecoderConfig(
    vocab_size=24, vocab_used=5, width=8, layers=1, heads=2, kv_heads=1, head_width=4, feed_forward_width=8
)


def cut(parameters: Parameters) -> Parameters:
    return {
        **parameters,
        "token_embedding": {"embedding": parameters["token_embedding"]["embedding"][:5]},
        "output": {"kernel": parameters["output"]["kernel"][:, :5]},
    }


def probabilities(config: DecoderConfig, parameters: Parameters) -> np.ndarray:
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 8)), jnp.float32)
    return np.asarray(jax.nn.softmax(Decoder(config).apply({"params": parameters}, hidden, method="logits")))


def test_padding_has_no_share_of_the_softmax() -> None:
    parameters = drawn_parameters(PADDED)
    whole = PADDED.model_copy(update={"vocab_size": 5, "vocab_used": None})
    padded = probabilities(PADDED, parameters)
    np.testing.assert_allclose(padded[..., :5], probabilities(whole, cut(parameters)), rtol=1e-6)
    assert not padded[..., 5:].any()


def test_padding_is_never_drawn() -> None:
    sampling = SamplingConfig(temperature=100.0)
    config = DecodingConfig(max_new_tokens=24, rows=2, sampling=sampling)
    prompts = [Prompt(np.array([1, 2], np.int32)), Prompt(np.array([4], np.int32))]
    answers = generate(Decoder(PADDED), drawn_parameters(PADDED), prompts, [], config)
    assert {token for answer in answers for token in answer} <= set(range(5))


@pytest.mark.parametrize("tied", [False, True])
def test_padding_is_cut_off_on_export(tied: bool) -> None:
    config = PADDED.model_copy(update={"tied_embeddings": tied})
    parameters = drawn_parameters(config)
    family, changed = exportable(LoadedModel(ModelDescription(model=config), parameters, None, "here"))
    assert family.to_hugging_face(changed.config)["vocab_size"] == 5
    expected = parameters["token_embedding"]["embedding"][:5]
    np.testing.assert_array_equal(changed.parameters["token_embedding"]["embedding"], expected)
    if not tied:
        np.testing.assert_array_equal(changed.parameters["output"]["kernel"], parameters["output"]["kernel"][:, :5])
