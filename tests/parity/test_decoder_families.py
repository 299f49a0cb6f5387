"""Every decoder family against transformers, with random weights in float32: logits, export and greedy tokens."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt
from mllm_jax.interop.families.choice import family_of_folder
from mllm_jax.interop.weights import save
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.parameters import Parameters
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    FEW_SHAPES,
    assert_close,
    assert_gradients_close,
    assert_loads_whole,
    read_config,
    read_parameters,
    save_gradients,
    stored_names,
    with_gradients,
)
from tests.support.proofs import Prover

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
GEMMA = SHAPE | {"tie_word_embeddings": True, "num_hidden_layers": 2}
WIDE_HEADS = {"hidden_size": 48}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [1.0, 3.0, 7.0, 13.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}
OPT = {"vocab_size": 61, "hidden_size": 36, "ffn_dim": 52, "num_hidden_layers": 2, "num_attention_heads": 6} | {
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
GPT2 = {"vocab_size": 61, "n_embd": 36, "n_layer": 2, "n_head": 6, "n_positions": 64}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", SHAPE | {"sliding_window": 5}),
    "qwen2": ("Qwen2", SHAPE | WIDE_HEADS),
    "qwen2 windows": ("Qwen2", SHAPE | WIDE_HEADS | QWEN_WINDOWS | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", SHAPE | QWEN_WINDOWS),
    "qwen3 biased": ("Qwen3", SHAPE | {"attention_bias": True, "rope_parameters": YARN}),
    "gemma": ("Gemma", GEMMA),
    "gemma2": ("Gemma2", GEMMA | {"sliding_window": 5, "query_pre_attn_scalar": 13}),
    "gemma3": (
        "Gemma3",
        GEMMA
        | {"sliding_window": 5, "query_pre_attn_scalar": 13, "sliding_window_pattern": 2}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi3": ("Phi3", SHAPE | WIDE_HEADS | {"sliding_window": 7}),
    "phi3 partial": ("Phi3", SHAPE | WIDE_HEADS | {"partial_rotary_factor": 0.5}),
    "phi3 longrope": (
        "Phi3",
        SHAPE
        | WIDE_HEADS
        | {"original_max_position_embeddings": 16, "rope_parameters": LONGROPE}
        | {"max_position_embeddings": 64},
    ),
    "llama dynamic": ("Llama", SHAPE | {"max_position_embeddings": 16, "rope_parameters": DYNAMIC}),
    "mixtral": ("Mixtral", SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7}),
    "qwen3 moe": ("Qwen3Moe", SHAPE | {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}),
    "smollm3": ("SmolLM3", SHAPE | WIDE_HEADS | {"no_rope_layer_interval": 2}),
    "opt": ("OPT", OPT),
    "opt without biases": ("OPT", OPT | {"enable_bias": False, "activation_function": "gelu"}),
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied": ("GPT2", GPT2 | {"n_inner": 40, "tie_word_embeddings": False}),
}
SHAPES = st.fixed_dictionaries(
    {
        "groups": st.integers(1, 4),
        "kv_heads": st.integers(1, 4),
        "half_head": st.integers(2, 5),
        "width_per_head": st.integers(4, 11),
        "inner": st.integers(1, 40),
        "layers": st.integers(1, 3),
        "window": st.integers(1, 14),
        "tied": st.booleans(),
    }
)
FULL_WIDTH_HEADS = ("Qwen2", "Phi3", "SmolLM3", "OPT", "GPT2")
"""Families whose heads together are as wide as the model."""
DRAWN: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "Gemma": {},
    "Gemma2": {"query_pre_attn_scalar": 13},
    "Gemma3": {"query_pre_attn_scalar": 13, "sliding_window_pattern": 2},
    "Phi3": {},
    "SmolLM3": {"no_rope_layer_interval": 2},
    "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "Qwen3Moe": {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 5},
    "OPT": {"pad_token_id": 1},
    "GPT2": {},
}
"""What a family's models have beside their sizes; a window is used where it has one."""
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
MODELS = {"GPT2": "GPT2LMHeadModel"}


def model_class(name: str) -> Any:
    return getattr(transformers, MODELS.get(name, f"{name}ForCausalLM"))


def make(name: str, keys: dict[str, Any]) -> torch.nn.Module:
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**keys)
    return randomise(model_class(name)(config))


class Case(NamedTuple):
    model_class: Any
    folder: Path
    theirs: torch.nn.Module
    config: DecoderConfig
    parameters: Parameters


def write(name: str, folder: Path) -> Any:
    """Writes a folder with random weights; returns the class of its model."""
    family, keys = CASES[name]
    make(family, keys).save_pretrained(folder)
    return model_class(family)


def read(case_class: Any, folder: Path) -> torch.nn.Module:
    # Only eager attention applies Gemma 2's caps; only eager experts take rows of any width.
    return case_class.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager").eval()


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("theirs")
    case_class = write(request.param, folder)
    config = read_config(folder)
    return Case(case_class, folder, read(case_class, folder), config, read_parameters(folder, config))


def logits(config: DecoderConfig, parameters: Parameters, tokens: np.ndarray) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def run(module: Decoder) -> jax.Array:
        hidden, _ = module(module.embed(jnp.asarray(tokens)), jnp.ones_like(positions), positions)
        return module.logits(hidden)

    return jax.jit(lambda tree: Decoder(config).apply({"params": tree}, method=run))(parameters)


def drawn_tokens(rows: int = 2, length: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 61, (rows, length))


def export(source: Path, target: Path, config: DecoderConfig, parameters: Parameters) -> None:
    """Writes parameters as the family that `source` is of."""
    family = family_of_folder(json.loads((source / "config.json").read_text()))
    (target / "config.json").write_text(json.dumps(family.to_hugging_face(config)))
    save(target, family.table, parameters)


def test_logits(case: Case, proven: Prover) -> None:
    tokens = drawn_tokens()
    difference = assert_close(logits(case.config, case.parameters, tokens), case.theirs(torch.tensor(tokens)).logits)
    proven(case.folder, "import", difference)


def test_exported_weights_are_the_imported_ones(case: Case, tmp_path: Path, proven: Prover) -> None:
    export(case.folder, tmp_path, case.config, case.parameters)
    assert stored_names(tmp_path) == stored_names(case.folder)
    assert_loads_whole(case.model_class, tmp_path, case.theirs)
    tokens = torch.tensor(drawn_tokens())
    assert torch.equal(read(case.model_class, tmp_path)(tokens).logits, case.theirs(tokens).logits)
    assert read_config(tmp_path) == case.config
    proven(case.folder, "export")


def test_greedy_tokens(case: Case, proven: Prover) -> None:
    """Prompts of different lengths in one batch continue as each of them does alone in transformers."""
    tokens = drawn_tokens()
    prompts = [tokens[0, :17], tokens[1, :9]]
    ours = generate(
        Decoder(case.config),
        case.parameters,
        [Prompt(prompt.astype(np.int32)) for prompt in prompts],
        [],
        DecodingConfig(max_new_tokens=8, rows=2),
    )
    for prompt, answer in zip(prompts, ours, strict=True):
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        whole = torch.tensor(prompt)[None]
        # A new model each time: a dynamic rotary scaling remembers the longest sequence it has seen.
        theirs = read(case.model_class, case.folder).generate(whole, attention_mask=torch.ones_like(whole), **settings)
        assert answer == theirs[0, len(prompt) :].tolist()
    proven(case.folder, "generate")


@pytest.mark.parametrize("name", ["gemma3", "phi3", "gpt2"])
def test_unscanned_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    write(name, tmp_path / "theirs")
    config = read_config(tmp_path / "theirs", scan=False)
    parameters = read_parameters(tmp_path / "theirs", config)
    (tmp_path / "exported").mkdir()
    export(tmp_path / "theirs", tmp_path / "exported", config, parameters)
    original, exported = (load_file(tmp_path / part / "model.safetensors") for part in ("theirs", "exported"))
    assert original.keys() == exported.keys()
    for key, array in original.items():
        np.testing.assert_array_equal(exported[key], array)
    scanned = read_parameters(tmp_path / "theirs", read_config(tmp_path / "theirs"))
    for layer in range(config.layers):
        stacked = jax.tree.map(lambda leaf, layer=layer: leaf[layer], scanned["blocks"])
        jax.tree.map(np.testing.assert_array_equal, stacked, parameters[f"blocks_{layer}"])


def drawn_keys(family: str, shape: dict[str, Any]) -> dict[str, Any]:
    """A config.json's sizes in the family's own keys."""
    heads, head_width = shape["groups"] * shape["kv_heads"], 2 * shape["half_head"]
    width = heads * (head_width if family in FULL_WIDTH_HEADS else shape["width_per_head"])
    inner, layers, tied = shape["inner"], shape["layers"], {"tie_word_embeddings": shape["tied"]}
    if family == "GPT2":
        return tied | GPT2 | {"n_embd": width, "n_layer": layers, "n_head": heads, "n_inner": inner}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    if family == "OPT":
        return tied | OPT | sizes | {"ffn_dim": inner, "word_embed_proj_dim": width}
    return (
        SHAPE
        | tied
        | sizes
        | {
            "num_key_value_heads": shape["kv_heads"],
            "head_dim": head_width,
            "intermediate_size": inner,
            "sliding_window": shape["window"],
        }
    )


@pytest.mark.parametrize("family", DRAWN)
@FEW_SHAPES
@given(shape=SHAPES, length=st.integers(1, 17), scan=st.booleans())
def test_any_shape(
    tmp_path_factory: pytest.TempPathFactory,
    proven: Prover,
    family: str,
    shape: dict[str, Any],
    length: int,
    scan: bool,
) -> None:
    """Logits, every parameter's gradient of a weighted sum of them, and the exported file."""
    theirs, exported, gradients = (tmp_path_factory.mktemp(name) for name in ("theirs", "exported", "gradients"))
    make(family, DRAWN[family] | drawn_keys(family, shape)).save_pretrained(theirs)
    config, reference = read_config(theirs, scan), with_gradients(read(model_class(family), theirs))
    parameters, tokens = read_parameters(theirs, config), drawn_tokens(rows=1, length=length)
    weights = np.random.default_rng(1).standard_normal((1, length, 61)).astype(np.float32)

    def total(parameters: Parameters) -> tuple[jax.Array, jax.Array]:
        ours = logits(config, parameters, tokens)
        return (ours * weights).sum(), ours

    found, ours = jax.jit(jax.grad(total, has_aux=True))(parameters)
    expected = reference(torch.tensor(tokens)).logits
    assert_close(ours, expected)
    (expected * torch.tensor(weights)).sum().backward()
    save_gradients(gradients, reference)
    assert_gradients_close(found, read_parameters(gradients, config))
    proven(theirs, "train")

    export(theirs, exported, config, parameters)
    original, again = (load_file(folder / "model.safetensors") for folder in (theirs, exported))
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in original.items()
    }
    assert read_config(exported, scan) == config


def test_layers_of_different_kinds_are_the_same_scanned_or_not(tmp_path: Path) -> None:
    write("gemma3", tmp_path)
    tokens = drawn_tokens(rows=1)
    results = [
        logits(config, read_parameters(tmp_path, config), tokens)
        for config in (read_config(tmp_path, scan) for scan in (True, False))
    ]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-4)
