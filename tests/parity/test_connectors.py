"""Connectors against the modules that they stand for, with random weights in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

from mllm_jax.models.connectors.average_pool import AveragePoolConfig
from mllm_jax.models.connectors.choice import ConnectorConfig, make_connector
from mllm_jax.models.connectors.convolution import ConvolutionConfig
from mllm_jax.models.connectors.features import FeatureGrid
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
from tests.support.hugging_face_folders import randomise
from tests.support.parity import assert_close

WIDTH = 10
TEXT = {"hidden_size": WIDTH, "num_attention_heads": 1, "num_key_value_heads": 1}


def drawn(grid: FeatureGrid, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, grid.total, width)).astype(np.float32)


def connected(config: ConnectorConfig, grid: FeatureGrid, features: np.ndarray, parameters: dict) -> jax.Array:
    module = make_connector(config, grid, WIDTH, dtype=jnp.float32, param_dtype=jnp.float32)
    outputs = jax.jit(module.apply)({"params": parameters}, features)
    assert outputs.shape == (len(features), config.tokens(grid), WIDTH)
    return outputs


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def linear(layer: nn.Linear) -> dict[str, np.ndarray]:
    return {"kernel": array(layer.weight).T} | ({} if layer.bias is None else {"bias": array(layer.bias)})


def norm(layer: nn.LayerNorm) -> dict[str, np.ndarray]:
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_is_that_of_idefics3(factor: int) -> None:
    config = transformers.Idefics3Config(
        vision_config={"hidden_size": 12},
        text_config=transformers.LlamaConfig(**TEXT),
        scale_factor=factor,
    )
    theirs = randomise(Idefics3Connector(config))
    grid, features = FeatureGrid(6, 6), drawn(FeatureGrid(6, 6))
    ours = PixelShuffleConfig(factor=factor, depth=1, bias=False)
    parameters = {"layers_0": linear(theirs.modality_projection.proj)}
    assert_close(connected(ours, grid, features, parameters), theirs(torch.tensor(features)))


def test_pixel_shuffle_before_a_normed_mlp_is_that_of_internvl() -> None:
    config = transformers.InternVLConfig(
        vision_config={"hidden_size": 12}, text_config=transformers.LlamaConfig(**TEXT)
    )
    theirs = randomise(InternVLMultiModalProjector(config))
    grid, features = FeatureGrid(4, 4), drawn(FeatureGrid(4, 4))
    shuffled = InternVLModel.pixel_shuffle(None, torch.tensor(features).reshape(2, 4, 4, 12))
    expected = theirs(shuffled.reshape(2, -1, shuffled.shape[-1]))
    parameters = {
        "norm": norm(theirs.layer_norm),
        "layers_0": linear(theirs.linear_1),
        "layers_1": linear(theirs.linear_2),
    }
    assert_close(connected(PixelShuffleConfig(norm=True), grid, features, parameters), expected)


def test_pixel_shuffle_keeps_rows_and_columns_apart() -> None:
    """On an oblong grid every square's patches, and no others, are in its feature."""
    grid = FeatureGrid(2, 6)
    features = np.arange(12, dtype=np.float32).reshape(1, 12, 1)
    parameters = {"layers_0": {"kernel": np.eye(4, WIDTH, dtype=np.float32)}}
    outputs = connected(PixelShuffleConfig(depth=1, bias=False), grid, features, parameters)
    np.testing.assert_array_equal(outputs[0, :, :4], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    kernel=st.integers(1, 4),
    stride=st.one_of(st.none(), st.integers(1, 4)),
)
def test_average_pool(rows: int, columns: int, kernel: int, stride: int | None) -> None:
    grid, config = FeatureGrid(rows, columns), AveragePoolConfig(kernel=kernel, stride=stride)
    if kernel > min(rows, columns):
        with pytest.raises(ValueError, match=f"{kernel} is larger than the encoder's {rows} x {columns} patches"):
            config.tokens(grid)
        return
    features = drawn(grid)
    layers = randomise(nn.Sequential(nn.Linear(12, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)))
    pooled = nn.AvgPool2d(kernel, stride)(torch.tensor(features).reshape(2, rows, columns, 12).permute(0, 3, 1, 2))
    parameters = {"layers_0": linear(layers[0]), "layers_1": linear(layers[2])}
    assert_close(connected(config, grid, features, parameters), layers(pooled.flatten(2).transpose(1, 2)))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RegNetBlock(nn.Module):
    """A bottleneck of RegNetY with depthwise convolutions, as the C-Abstractor is made of."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), ChannelNorm(outputs), nn.SiLU())
        depthwise = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False)
        self.depthwise = nn.Sequential(depthwise, ChannelNorm(outputs), nn.SiLU())
        squeezed = round(inputs / 4)
        self.excitation = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(outputs, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, outputs, 1)
        )
        self.last = nn.Sequential(nn.Conv2d(outputs, outputs, 1, bias=False), ChannelNorm(outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), ChannelNorm(outputs))
        self.changes_width = inputs != outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.depthwise(self.first(inputs))
        hidden = self.last(hidden * torch.sigmoid(self.excitation(hidden)))
        return nn.functional.silu(hidden + (self.shortcut(inputs) if self.changes_width else inputs))

    def parameters_of_ours(self) -> dict[str, Any]:
        names = ["first", "last", *(["shortcut"] if self.changes_width else [])]
        pairs = {name: getattr(self, name) for name in names}
        ours = {name: {"kernel": array(pair[0].weight)[:, :, 0, 0].T} for name, pair in pairs.items()}
        ours |= {f"{name}_norm": norm(pair[1]) for name, pair in pairs.items()}
        ours |= {"depthwise": {"kernel": array(self.depthwise[0].weight).transpose(2, 3, 1, 0)}}
        ours |= {"depthwise_norm": norm(self.depthwise[1])}
        for name, convolution in (("squeeze", self.excitation[1]), ("excite", self.excitation[3])):
            ours[name] = {"kernel": array(convolution.weight)[:, :, 0, 0].T, "bias": array(convolution.bias)}
        return ours


@pytest.mark.parametrize(("rows", "columns", "pooled"), [(5, 7, (3, 3)), (6, 4, (2, 4)), (2, 3, (4, 5))])
def test_convolution_is_the_c_abstractor(rows: int, columns: int, pooled: tuple[int, int]) -> None:
    before = [RegNetBlock(12, 16), RegNetBlock(16, 16)]
    after = [RegNetBlock(16, 16), RegNetBlock(16, 16)]
    layers = nn.Sequential(nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
    theirs = randomise(nn.Sequential(*before, nn.AdaptiveAvgPool2d(pooled), *after, nn.Flatten(2)))
    randomise(layers, seed=1)
    grid = FeatureGrid(rows, columns)
    features, positions = drawn(grid), np.random.default_rng(1).standard_normal((grid.total, 12)).astype(np.float32)
    maps = torch.tensor(features + positions).reshape(2, rows, columns, 12).permute(0, 3, 1, 2)
    parameters = {"position_embedding": positions, "layers_0": linear(layers[0]), "layers_1": linear(layers[2])}
    parameters |= {f"before_{index}": block.parameters_of_ours() for index, block in enumerate(before)}
    parameters |= {f"after_{index}": block.parameters_of_ours() for index, block in enumerate(after)}
    config = ConvolutionConfig(pooled=pooled, blocks=2, hidden_width=16)
    assert_close(connected(config, grid, features, parameters), layers(theirs(maps).transpose(1, 2)))


@pytest.mark.parametrize(
    ("connector", "image", "patch", "tokens"),
    [
        (MLPConfig(depth=1), 336, 14, 576),
        (PixelShuffleConfig(factor=2), 364, 14, 169),
        (PixelShuffleConfig(factor=3), 384, 14, 81),
        (PixelShuffleConfig(factor=4), 512, 16, 64),
        (PixelShuffleConfig(factor=2), 448, 14, 256),
        (AveragePoolConfig(kernel=2), 336, 14, 144),
        (ConvolutionConfig(), 336, 14, 144),
    ],
)
def test_published_counts(connector: ConnectorConfig, image: int, patch: int, tokens: int) -> None:
    """LLaVA-1.5, Idefics3, SmolVLM, nanoVLM, InternVL, a pooled LLaVA and Honeybee."""
    assert connector.tokens(FeatureGrid(image // patch, image // patch)) == tokens


@pytest.mark.parametrize("connector", [PixelShuffleConfig(), AveragePoolConfig(), ConvolutionConfig()])
def test_a_class_token_has_no_place_on_a_grid(connector: ConnectorConfig) -> None:
    with pytest.raises(ValueError, match=r"hands on 1 features more; set encoder\.features\.keep_class_token to false"):
        connector.tokens(FeatureGrid(4, 4, extra=1))


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"connector\.factor 3 does not divide the encoder's 4 x 6 patches"):
        PixelShuffleConfig(factor=3).tokens(FeatureGrid(4, 6))
