"""The decoder against transformers, with random weights in float32."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_jax.models.decoder import Decoder, DecoderConfig
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    assert_close,
    assert_loads_whole,
    read_config,
    read_parameters,
    stored_names,
    write_folder,
)
from tests.support.proofs import Prover

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 4,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE, "head_dim": 12},
    "many heads": {"num_key_value_heads": 9, "rope_parameters": {"rope_type": "default", "rope_theta": 123.0}},
    "one kv head": {"num_key_value_heads": 1, "hidden_size": 45, "head_dim": 6, "vocab_size": 7},
}


def make(folder: Path, changes: dict[str, Any]) -> torch.nn.Module:
    model = randomise(transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SHAPE | changes))))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=MODELS)
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, make(folder, MODELS[request.param])


def logits(config: DecoderConfig, parameters: dict, tokens: np.ndarray) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def run(module: Decoder) -> jax.Array:
        hidden, _ = module(module.embed(jnp.asarray(tokens)), jnp.ones_like(positions), positions)
        return module.logits(hidden)

    return jax.jit(lambda tree: Decoder(config).apply({"params": tree}, method=run))(parameters)


def drawn_tokens(vocabulary: int, rows: int = 2, length: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length))


@pytest.mark.parametrize("scan", [True, False])
def test_logits(llama: tuple[Path, torch.nn.Module], scan: bool, proven: Prover) -> None:
    folder, model = llama
    config = read_config(folder, scan)
    tokens = drawn_tokens(config.vocab_size)
    ours = logits(config, read_parameters(folder, config), tokens)
    proven(folder, "import", assert_close(ours, model(torch.tensor(tokens)).logits))


@pytest.mark.parametrize("scan", [True, False])
def test_exported_weights_are_the_imported_ones(
    llama: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = llama
    config = read_config(folder, scan)
    write_folder(tmp_path / "exported", config, read_parameters(folder, config))
    assert stored_names(tmp_path / "exported") == stored_names(folder)
    assert_loads_whole(transformers.LlamaForCausalLM, tmp_path / "exported", model)
    exported = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "exported")
    tokens = torch.tensor(drawn_tokens(config.vocab_size))
    assert torch.equal(exported(tokens).logits, model(tokens).logits)
    proven(folder, "export")


def test_a_tied_file_may_repeat_the_embedding(tmp_path: Path) -> None:
    """Some tied models were saved with their output projection too."""
    model = make(tmp_path, {"tie_word_embeddings": True})
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in stored_names(tmp_path)
    config = read_config(tmp_path)
    assert "output" not in read_parameters(tmp_path, config)
    save_file(state | {"lm_head.weight": state["lm_head.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        read_parameters(tmp_path, config)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    groups=st.integers(1, 4),
    kv_heads=st.integers(1, 4),
    half=st.integers(1, 5),
    width=st.integers(3, 40),
    inner=st.integers(1, 40),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    scan=st.booleans(),
)
def test_any_shape(tmp_path_factory: pytest.TempPathFactory, **drawn: Any) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    heads = drawn["groups"] * drawn["kv_heads"]
    changes = {
        # transformers wants a width that its heads divide, even when it is given their width.
        "hidden_size": drawn["width"] * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": drawn["kv_heads"],
        "head_dim": 2 * drawn["half"],
        "intermediate_size": drawn["inner"],
        "num_hidden_layers": drawn["layers"],
        "tie_word_embeddings": drawn["tied"],
    }
    model = make(folder, changes)
    config = read_config(folder, drawn["scan"])
    tokens = drawn_tokens(61, rows=1, length=11)
    assert_close(logits(config, read_parameters(folder, config), tokens), model(torch.tensor(tokens)).logits)
