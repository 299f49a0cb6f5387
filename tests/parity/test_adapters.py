"""Prefixes and visual experts against torch: LLaMA with the same weights, and the published method around it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from mllm_jax.interop.families.choice import family_of_config
from mllm_jax.interop.weights import load
from mllm_jax.models.connectors.prefix_adapter import PrefixAdapterConfig, PrefixAdapterConnector, VisualModuleConfig
from mllm_jax.models.connectors.visual_expert import VisualExpertConfig
from mllm_jax.models.decoder import Decoder, DecoderConfig
from mllm_jax.models.layers.media import Media
from mllm_jax.models.parameters import abstract_parameters
from tests.support.hugging_face_folders import randomise, text_config
from tests.support.parity import assert_close, read_config

TOKENS = np.random.default_rng(0).integers(0, 61, (2, 11))
SEEN = np.array([[-1, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0] * 11])
AT_IMAGE = np.isin(np.arange(11), [2, 3, 5]) & (np.arange(2)[:, None] == 0)
LENGTH, LAYERS, WIDTH, HEADS = 4, 2, 36, 9


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, DecoderConfig, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("llama")
    made = text_config(vocabulary=61)
    made.num_hidden_layers = 3
    model = randomise(transformers.LlamaForCausalLM(made))
    model.save_pretrained(folder)
    config = read_config(folder)
    return model, config, load(folder, family_of_config(config).table, abstract_parameters(config)).parameters


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def logits(config: DecoderConfig, added: Any, parameters: dict[str, Any], features: np.ndarray) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    media = Media(jnp.asarray(features), jnp.asarray(SEEN), jnp.asarray(AT_IMAGE))

    def run(module: Decoder) -> jax.Array:
        embeddings = module.embed(jnp.asarray(TOKENS))
        return module.logits(module(embeddings, jnp.ones_like(positions), positions, media=media)[0])

    return jax.jit(lambda tree: Decoder(config, added).apply({"params": tree}, method=run))(parameters)


class WrappedAttention(torch.nn.Module):
    """LLaMA's attention: `project(name, hidden)` makes its linear layers, `more(queries)` is added before the last."""

    def __init__(self, inner: torch.nn.Module, project: Callable, more: Callable | None = None):
        super().__init__()
        self.inner, self.project, self.more = inner, project, more

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.inner.head_dim)
        query, key, value = (
            self.project(name, hidden_states).view(shape).transpose(1, 2) for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        groups = self.inner.num_key_value_groups
        read = torch.nn.functional.scaled_dot_product_attention(
            query, repeat_kv(key, groups), repeat_kv(value, groups), is_causal=True
        )
        if self.more is not None:
            read = read + self.more(query)
        return self.project("o_proj", read.transpose(1, 2).flatten(2)), None


def prefix_reader(attention: torch.nn.Module, prefix: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor) -> Callable:
    """`prefix` [B, S, D] through the layer's own key and value projections, a softmax of its own, a gate a head."""

    def read(query: torch.Tensor) -> torch.Tensor:
        shape = (*prefix.shape[:-1], -1, attention.head_dim)
        key, value = (
            repeat_kv(make(prefix).view(shape).transpose(1, 2), attention.num_key_value_groups)
            for make in (attention.k_proj, attention.v_proj)
        )
        scores = (query @ key.transpose(2, 3)) / attention.head_dim**0.5
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
        return torch.tanh(gate)[None, :, None, None] * (torch.softmax(scores, dim=-1) @ value)

    return read


def with_attention(model: torch.nn.Module, make: dict[int, Callable]) -> torch.Tensor:
    """Logits of the model with some layers' attention replaced, and the model as it was."""
    layers = model.model.layers
    kept = {layer: layers[layer].self_attn for layer in make}
    try:
        for layer, build in make.items():
            layers[layer].self_attn = build(kept[layer])
        return model(torch.tensor(TOKENS)).logits.detach()
    finally:
        for layer, attention in kept.items():
            layers[layer].self_attn = attention


def test_prefixes_with_images_in_the_last_layers(llama: tuple) -> None:
    """LLaMA-Adapter V2: what is made of the image that a token sees is added to every prefix that it reads."""
    model, config, parameters = llama
    prefix, gates, features = (
        drawn(LAYERS, LENGTH, WIDTH),
        drawn(LAYERS, HEADS, seed=1),
        drawn(2, 2, LENGTH, WIDTH, seed=2),
    )
    added = PrefixAdapterConfig(length=LENGTH, layers=LAYERS)
    ours = logits(config, added, parameters | {"prefix": {"embeddings": prefix, "gates": gates}}, features)

    def build(layer: int) -> Callable:
        own = torch.tensor(prefix[layer])
        # Image 0, image 1, and no image at all, end to end.
        images = torch.tensor(np.concatenate([features, np.zeros((2, 1, LENGTH, WIDTH), np.float32)], axis=1))
        whole = (own + images).flatten(1, 2)
        mask = torch.tensor(np.where(SEEN < 0, 2, SEEN)[:, :, None] == np.repeat(np.arange(3), LENGTH))

        def wrapped(inner: torch.nn.Module) -> torch.nn.Module:
            reader = prefix_reader(inner, whole, torch.tensor(gates[layer]), mask)
            return WrappedAttention(inner, lambda name, hidden: getattr(inner, name)(hidden), reader)

        return wrapped

    assert_close(ours, with_attention(model, {1: build(0), 2: build(1)}))


def test_prefixes_without_images_are_those_of_peft(llama: tuple) -> None:
    """LLaMA-Adapter V1 as peft has it: one gate a layer, as it is."""
    model, config, parameters = llama
    prefix, gates = drawn(LAYERS, LENGTH, WIDTH), drawn(LAYERS, 1, seed=1)
    added = PrefixAdapterConfig(length=LENGTH, layers=LAYERS, gate="layer", gate_activation="linear", visual=None)
    ours = logits(
        config, added, parameters | {"prefix": {"embeddings": prefix, "gates": gates}}, drawn(2, 0, LENGTH, WIDTH)
    )

    prompts = peft.AdaptionPromptConfig(adapter_len=LENGTH, adapter_layers=LAYERS, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, prompts)
    try:
        with torch.no_grad():
            for layer in range(LAYERS):
                attention = model.model.layers[config.layers - LAYERS + layer].self_attn
                attention.adaption_prompt.copy_(torch.tensor(prefix[layer])[None])
                attention.adaption_gate.copy_(torch.tensor(gates[layer]))
            assert_close(ours, adapted(torch.tensor(TOKENS)).logits)
    finally:
        for layer in model.model.layers[config.layers - LAYERS :]:
            layer.self_attn = layer.self_attn.model


def test_the_visual_module(llama: tuple) -> None:
    config = VisualModuleConfig(width=12, layers=2, heads=3, feed_forward_width=20)
    connector = PrefixAdapterConnector(PrefixAdapterConfig(length=LENGTH, visual=config), None, width=WIDTH)
    into, out_of = randomise(torch.nn.Linear(16, 12)), randomise(torch.nn.Linear(12, WIDTH), seed=1)
    input_norm, output_norm = randomise(torch.nn.LayerNorm(12), seed=2), randomise(torch.nn.LayerNorm(WIDTH), seed=3)
    block = {"d_model": 12, "nhead": 3, "dim_feedforward": 20, "dropout": 0.0, "activation": "gelu"}
    blocks = [
        randomise(torch.nn.TransformerEncoderLayer(**block, batch_first=True, norm_first=True), seed=4 + layer)
        for layer in range(2)
    ]
    queries, features = drawn(LENGTH, 12), drawn(3, 7, 16, seed=1)
    hidden = torch.cat([torch.tensor(queries).expand(3, -1, -1), input_norm(into(torch.tensor(features)))], dim=1)
    for each in blocks:
        hidden = each(hidden)
    expected = output_norm(out_of(hidden[:, :LENGTH]))

    tree = {
        "queries": queries,
        "input": linear(into),
        "output": linear(out_of),
        "input_norm": norm(input_norm),
        "output_norm": norm(output_norm),
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *map(encoder_layer, blocks)),
    }
    assert_close(jax.jit(connector.apply)({"params": {"visual": tree}}, jnp.asarray(features)), expected)


def linear(layer: torch.nn.Linear) -> dict[str, np.ndarray]:
    return {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}


def norm(layer: torch.nn.LayerNorm) -> dict[str, np.ndarray]:
    return {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}


def encoder_layer(layer: torch.nn.TransformerEncoderLayer) -> dict[str, Any]:
    weights, biases = (
        tensor.detach().numpy() for tensor in (layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias)
    )
    attention: dict[str, Any] = {
        name: {"kernel": weight.T.reshape(12, 3, 4), "bias": bias.reshape(3, 4)}
        for name, weight, bias in zip(("query", "key", "value"), np.split(weights, 3), np.split(biases, 3), strict=True)
    }
    output = linear(layer.self_attn.out_proj)
    attention["output"] = {"kernel": output["kernel"].reshape(3, 4, 12), "bias": output["bias"]}
    return {
        "attention": attention,
        "attention_norm": norm(layer.norm1),
        "feed_forward_norm": norm(layer.norm2),
        "feed_forward": {"up": linear(layer.linear1), "down": linear(layer.linear2)},
    }


def test_a_visual_expert(llama: tuple) -> None:
    """Image tokens take the weights of a second model in attention and feed-forward, and all the rest of the first."""
    model, config, parameters = llama
    expert = randomise(transformers.LlamaForCausalLM(model.config), seed=1)
    mask = torch.tensor(AT_IMAGE)[..., None]
    mine, theirs = parameters["blocks"], expert_parameters(expert, config)
    attention = mine["attention"] | {f"image_{name}": theirs["attention"][name] for name in mine["attention"]}
    blocks = mine | {"attention": attention, "image_feed_forward": theirs["feed_forward"]}
    ours = logits(config, VisualExpertConfig(), parameters | {"blocks": blocks}, drawn(2, 2, 1, WIDTH))

    def build(layer: int) -> Callable:
        other = expert.model.layers[layer].self_attn

        def wrapped(inner: torch.nn.Module) -> torch.nn.Module:
            return WrappedAttention(
                inner,
                lambda name, hidden: torch.where(mask, getattr(other, name)(hidden), getattr(inner, name)(hidden)),
            )

        return wrapped

    class RoutedFeedForward(torch.nn.Module):
        def __init__(self, text: torch.nn.Module, image: torch.nn.Module):
            super().__init__()
            self.text, self.image = text, image

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.where(mask, self.image(hidden), self.text(hidden))

    layers = model.model.layers
    kept = [layer.mlp for layer in layers]
    try:
        for layer, own in enumerate(kept):
            layers[layer].mlp = RoutedFeedForward(own, expert.model.layers[layer].mlp)
        expected = with_attention(model, {layer: build(layer) for layer in range(3)})
    finally:
        for layer, own in enumerate(kept):
            layers[layer].mlp = own
    assert_close(ours, expected)


def expert_parameters(expert: torch.nn.Module, config: DecoderConfig) -> dict[str, Any]:
    """Attention and feed-forward of every layer, stacked, as ours."""
    heads = {
        "q_proj": ("query", config.heads),
        "k_proj": ("key", config.kv_heads),
        "v_proj": ("value", config.kv_heads),
    }

    def of_layer(layer: torch.nn.Module) -> dict[str, Any]:
        def kernel(linear: torch.nn.Linear) -> np.ndarray:
            return linear.weight.detach().numpy().T

        attention: dict[str, Any] = {
            ours: {"kernel": kernel(getattr(layer.self_attn, theirs)).reshape(WIDTH, count, config.head_width)}
            for theirs, (ours, count) in heads.items()
        }
        output = kernel(layer.self_attn.o_proj).reshape(config.heads, config.head_width, WIDTH)
        attention["output"] = {"kernel": output}
        names = ("gate", "up", "down")
        feed_forward = {name: {"kernel": kernel(getattr(layer.mlp, f"{name}_proj"))} for name in names}
        return {"attention": attention, "feed_forward": feed_forward}

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(of_layer, expert.model.layers))
