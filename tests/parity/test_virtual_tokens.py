"""Prompt tuning and prefix tuning against peft, on transformers' decoders with the same weights."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from mllm_jax.interop.families.choice import family_of_config
from mllm_jax.interop.weights import load
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.layers.virtual_tokens import EMBEDDINGS, KEYS, VALUES, VIRTUAL
from mllm_jax.models.parameters import Parameters, abstract_parameters
from tests.support.hugging_face_folders import randomise, text_config
from tests.support.parity import assert_close, read_config

COUNT, VOCABULARY = 3, 61
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 11))


def gemma() -> transformers.PretrainedConfig:
    """Windows shorter than the tokens before a segment's last ones, and embeddings that are scaled."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3}
    return transformers.Gemma2Config(**shape, **heads, sliding_window=5, query_pre_attn_scalar=13)


def gpt2() -> transformers.PretrainedConfig:
    """Learned positions."""
    return transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=36, n_layer=2, n_head=6, n_positions=64)


FAMILIES = {"llama": lambda: text_config(vocabulary=VOCABULARY), "gemma2": gemma, "gpt2": gpt2}


class Both(NamedTuple):
    theirs: torch.nn.Module
    config: DecoderConfig
    parameters: Parameters


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder: Path = tmp_path_factory.mktemp("theirs")
    config = FAMILIES[request.param]()
    config._attn_implementation = "eager"
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(config)).eval()
    theirs.save_pretrained(folder)
    ours = read_config(folder)
    return Both(theirs, ours, load(folder, family_of_config(ours).table, abstract_parameters(ours)).parameters)


def drawn_virtual(config: DecoderConfig, kind: str) -> tuple[Parameters, np.ndarray]:
    """Ours, and peft's one array of the same."""
    generator = np.random.default_rng(1)
    if kind == "prompt":
        embeddings = generator.standard_normal((COUNT, config.width)).astype(np.float32)
        return {EMBEDDINGS: jnp.asarray(embeddings)}, embeddings
    theirs = generator.standard_normal((COUNT, config.layers, 2, config.kv_heads, config.head_width)).astype(np.float32)
    keys, values = np.moveaxis(theirs, 0, 2)[:, 0], np.moveaxis(theirs, 0, 2)[:, 1]
    return {KEYS: jnp.asarray(keys), VALUES: jnp.asarray(values)}, theirs.reshape(COUNT, -1)


def their_logits(model: torch.nn.Module, kind: str, embeddings: np.ndarray) -> torch.Tensor:
    made: Any = peft.PromptTuningConfig if kind == "prompt" else peft.PrefixTuningConfig
    adapted = peft.get_peft_model(model, made(task_type="CAUSAL_LM", num_virtual_tokens=COUNT)).eval()
    adapted.prompt_encoder["default"].embedding.weight.data = torch.tensor(embeddings)
    with torch.no_grad():
        logits = adapted(torch.tensor(TOKENS), use_cache=kind == "prefix").logits
    return logits[:, -TOKENS.shape[1] :]


def logits(module: Decoder, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
    return module.logits(module(module.embed(tokens), segment_ids, positions)[0])


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_packed_segments_read_what_peft_puts_before_each_of_them_alone(both: Both, kind: str) -> None:
    virtual, embeddings = drawn_virtual(both.config, kind)
    expected = their_logits(both.theirs, kind, embeddings)
    length = TOKENS.shape[1]
    # The second sequence, then the first eight tokens of the first one, in one row with some padding.
    packed = np.concatenate([TOKENS[1], TOKENS[0, :8], [0, 0]])[None]
    segment_ids = np.repeat([1, 2, 0], [length, 8, 2])[None]
    positions = np.concatenate([np.arange(length), np.arange(8), [0, 0]])[None]
    found = jax.jit(lambda tree, *rows: Decoder(both.config).apply({"params": tree}, *rows, method=logits))(
        both.parameters | {VIRTUAL: virtual}, *map(jnp.asarray, (packed, segment_ids, positions))
    )
    assert_close(found[0, :length], expected[1])
    assert_close(found[0, length : length + 8], expected[0, :8])


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_cache_that_begins_with_them_goes_on_as_one_forward(both: Both, kind: str) -> None:
    model, tree = Decoder(both.config), both.parameters | {VIRTUAL: drawn_virtual(both.config, kind)[0]}
    length = TOKENS.shape[1]
    tokens, places = jnp.asarray(TOKENS), jnp.broadcast_to(jnp.arange(length), TOKENS.shape)

    @jax.jit
    def whole(tree: Parameters) -> jax.Array:
        return model.apply({"params": tree}, tokens, jnp.ones_like(tokens), places, method=logits)

    def in_two(module: Decoder) -> jax.Array:
        cache, found = module.start_cache(2, length), []
        for part in (slice(0, 6), slice(6, length)):
            read = module.embed(tokens[:, part]), jnp.ones_like(tokens[:, part]), places[:, part]
            hidden, cache = module(*read, cache)
            found.append(module.logits(hidden))
        return jnp.concatenate(found, axis=1)

    found = jax.jit(lambda tree: model.apply({"params": tree}, method=in_two))(tree)
    np.testing.assert_allclose(found, whole(tree), atol=2e-5)


@pytest.mark.parametrize("both", ["llama"], indirect=True)
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_every_virtual_token_learns(both: Both, kind: str) -> None:
    tokens = jnp.asarray(TOKENS)
    rows = tokens, jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    @jax.grad
    def gradient(virtual: Parameters) -> jax.Array:
        given = both.parameters | {VIRTUAL: virtual}
        return jnp.mean(jnp.square(Decoder(both.config).apply({"params": given}, *rows, method=logits)))

    for name, leaf in gradient(drawn_virtual(both.config, kind)[0]).items():
        of_tokens = leaf if name == EMBEDDINGS else jnp.moveaxis(leaf, 1, 0)
        assert jnp.abs(of_tokens.reshape(COUNT, -1)).max(axis=1).min() > 1e-6, name
