"""Connectors with learned queries against transformers: outputs, intermediate features and gradients, in float32."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from mllm_jax.interop.families.resamplers import (
    IDEFICS2_PERCEIVER_RULES,
    IDEFICS_PERCEIVER_RULES,
    idefics2_perceiver,
    idefics_perceiver,
    q_former,
    q_former_rules,
)
from mllm_jax.interop.rules import Table
from mllm_jax.interop.weights import load, save
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.connectors.perceiver import PerceiverConfig, PerceiverConnector
from mllm_jax.models.connectors.q_former import QFormerConfig, QFormerConnector
from mllm_jax.models.layers.stack import StackConfig
from tests.support.hugging_face_folders import randomise
from tests.support.parity import FEW_SHAPES, assert_close, assert_gradients_close, stored_names

GRID = FeatureGrid(1, 7)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def abstract(connector: nn.Module, features_width: int) -> dict[str, Any]:
    features = jax.ShapeDtypeStruct((1, 7, features_width), jnp.float32)
    tree = jax.eval_shape(connector.init, jax.random.key(0), features)["params"]
    return jax.tree.map(lambda box: box.value, tree, is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned))


def read(folder: Path, state: dict[str, torch.Tensor], rules: tuple, connector: nn.Module, width: int) -> dict:
    """The reference's tensors through the rules, and back again."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    parameters = load(folder, Table(rules), abstract(connector, width)).parameters
    save(folder / "back", Table(rules), parameters)
    assert stored_names(folder / "back") == stored_names(folder)
    return parameters


IDEFICS = {"resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 3, "resampler_head_dim": 8}


@pytest.mark.parametrize(("head_norms", "scan"), [(False, True), (True, False)])
def test_idefics_perceiver(tmp_path: Path, head_norms: bool, scan: bool) -> None:
    perceiver = IDEFICS | {"qk_layer_norms_perceiver": head_norms}
    theirs = transformers.IdeficsConfig(perceiver_config=perceiver, vision_config={"embed_dim": 20})
    reference = randomise(IdeficsPerceiverResampler(theirs, 20, 2, 3, 8, 5))
    config = idefics_perceiver(perceiver).model_copy(update={"stack": StackConfig(scan=scan)})
    connector = PerceiverConnector(config, GRID, width=20)
    state = {f"perceiver_resampler.{name}": tensor for name, tensor in reference.state_dict().items()}
    parameters = read(tmp_path, state, IDEFICS_PERCEIVER_RULES, connector, 20)
    features = drawn(3, 7, 20)
    ours = jax.jit(connector.apply)({"params": parameters}, features)
    assert ours.shape == (3, config.tokens(GRID), 20)
    assert_close(ours, reference(torch.tensor(features)))


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(groups=st.integers(1, 3), kv_heads=st.integers(1, 3), half=st.integers(1, 4), scan=st.booleans())
def test_idefics2_perceiver(
    tmp_path_factory: pytest.TempPathFactory, groups: int, kv_heads: int, half: int, scan: bool
) -> None:
    theirs = Idefics2PerceiverConfig(
        hidden_size=12,
        resampler_n_latents=5,
        resampler_depth=2,
        resampler_n_heads=groups * kv_heads,
        resampler_head_dim=2 * half,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-3,
    )
    reference = randomise(Idefics2PerceiverResampler(theirs))
    config = idefics2_perceiver(theirs.to_dict()).model_copy(update={"stack": StackConfig(scan=scan)})
    connector = PerceiverConnector(config, GRID, width=12)
    state = {f"perceiver_resampler.{name}": tensor for name, tensor in reference.state_dict().items()}
    parameters = read(tmp_path_factory.mktemp("drawn"), state, IDEFICS2_PERCEIVER_RULES, connector, 12)
    features = drawn(3, 7, 12)
    expected = reference(torch.tensor(features), torch.ones(3, 7, dtype=torch.long))
    assert_close(jax.jit(connector.apply)({"params": parameters}, features), expected)


def make_q_former(layers: int, every: int) -> tuple[torch.nn.Module, torch.Tensor, torch.nn.Linear]:
    theirs = transformers.Blip2QFormerConfig(
        hidden_size=24,
        num_hidden_layers=layers,
        num_attention_heads=3,
        intermediate_size=20,
        encoder_hidden_size=18,
        cross_attention_frequency=every,
    )
    queries = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(1))
    return randomise(Blip2QFormerModel(theirs)), queries.requires_grad_(), randomise(torch.nn.Linear(24, 10))


def q_former_state(reference: torch.nn.Module, queries: torch.Tensor, projection: torch.nn.Linear) -> dict:
    state = {f"qformer.{name}": tensor for name, tensor in reference.named_parameters()}
    return state | {
        "query_tokens": queries,
        "language_projection.weight": projection.weight,
        "language_projection.bias": projection.bias,
    }


@pytest.mark.parametrize(("layers", "every", "scan"), [(4, 2, True), (4, 2, False), (2, 1, True), (3, 3, True)])
def test_q_former(tmp_path: Path, layers: int, every: int, scan: bool) -> None:
    """Its output, what its queries are after every block, and the gradient of every parameter."""
    reference, queries, projection = make_q_former(layers, every)
    config = q_former(reference.config.to_dict(), queries=5).model_copy(update={"stack": StackConfig(scan=scan)})
    connector, rules = QFormerConnector(config, GRID, width=10), q_former_rules(every)
    state = q_former_state(reference, queries, projection)
    parameters = read(tmp_path, {name: tensor.detach() for name, tensor in state.items()}, rules, connector, 18)
    features, weights = drawn(3, 7, 18), drawn(3, 5, 10)

    def total(parameters: dict) -> tuple[jax.Array, jax.Array]:
        outputs = connector.apply({"params": parameters}, jnp.asarray(features))
        return (outputs * weights).sum(), outputs

    gradients, ours = jax.jit(jax.grad(total, has_aux=True))(parameters)
    outputs = reference(
        queries.expand(3, -1, -1), encoder_hidden_states=torch.tensor(features), output_hidden_states=True
    )
    theirs = projection(outputs.last_hidden_state)
    assert ours.shape == (3, config.tokens(GRID), 10)
    assert_close(ours, theirs)
    if not scan:
        _, seen = connector.apply({"params": parameters}, jnp.asarray(features), capture_intermediates=True)
        for block in range(layers // every):
            (captured,) = seen["intermediates"][f"blocks_{block}"]["__call__"]
            assert_close(captured[0], outputs.hidden_states[(block + 1) * every])

    (theirs * torch.tensor(weights)).sum().backward()
    save_file({name: tensor.grad.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    expected = load(tmp_path, Table(rules), abstract(connector, 18)).parameters
    assert_gradients_close(gradients, expected)


@FEW_SHAPES
@given(
    heads=st.integers(1, 4),
    head_width=st.integers(4, 9),
    blocks=st.integers(1, 2),
    every=st.integers(1, 3),
    inner=st.integers(1, 30),
    queries=st.integers(1, 6),
    features_width=st.integers(1, 20),
    scan=st.booleans(),
)
def test_q_former_of_any_shape(tmp_path_factory: pytest.TempPathFactory, **drawn_shape: Any) -> None:
    heads, every, queries = (drawn_shape[name] for name in ("heads", "every", "queries"))
    width, features_width = heads * drawn_shape["head_width"], drawn_shape["features_width"]
    theirs = transformers.Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=drawn_shape["blocks"] * every,
        num_attention_heads=heads,
        intermediate_size=drawn_shape["inner"],
        encoder_hidden_size=features_width,
        cross_attention_frequency=every,
    )
    reference, projection = randomise(Blip2QFormerModel(theirs)), randomise(torch.nn.Linear(width, 10))
    tokens = torch.randn(1, queries, width, generator=torch.Generator().manual_seed(1))
    config = q_former(theirs.to_dict(), queries).model_copy(update={"stack": StackConfig(scan=drawn_shape["scan"])})
    connector = QFormerConnector(config, GRID, width=10)
    state = {name: tensor.detach() for name, tensor in q_former_state(reference, tokens, projection).items()}
    folder = tmp_path_factory.mktemp("drawn")
    parameters = read(folder, state, q_former_rules(every), connector, features_width)
    features = drawn(2, 7, features_width)
    expected = reference(tokens.expand(2, -1, -1), encoder_hidden_states=torch.tensor(features)).last_hidden_state
    assert_close(jax.jit(connector.apply)({"params": parameters}, features), projection(expected))


def test_published_sizes() -> None:
    """32 tokens of BLIP-2, 64 of Flamingo, and their numbers of parameters."""
    grid = FeatureGrid(16, 16, extra=1)
    q_former_of_blip2, perceiver = QFormerConfig(), PerceiverConfig(projection=False)
    assert (q_former_of_blip2.tokens(grid), perceiver.tokens(grid)) == (32, 64)
    with torch.device("meta"):
        reference = Blip2QFormerModel(transformers.Blip2QFormerConfig())
    expected = sum(tensor.numel() for tensor in reference.parameters()) + 32 * 768 + 768 * 2560 + 2560
    assert count(abstract(QFormerConnector(q_former_of_blip2, grid, width=2560), 1408)) == expected
    # A block: 1024 x 512 four times, 1024 x 4096 twice, three norms; 64 latents and a last norm.
    flamingo = 6 * (4 * 1024 * 512 + 2 * 1024 * 4096 + 3 * 2 * 1024) + 64 * 1024 + 2 * 1024
    assert count(abstract(PerceiverConnector(perceiver, grid, width=1024), 1024)) == flamingo


def count(tree: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
