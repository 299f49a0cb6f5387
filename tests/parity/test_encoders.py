"""The vision encoders against transformers, with random weights in float32."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding
from safetensors.torch import save_file

from mllm_jax.interop.adjustments import encoder_adjustments
from mllm_jax.interop.backbones import architecture_of, load_backbone
from mllm_jax.interop.families.choice import family_of_config
from mllm_jax.interop.weights import load
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.parameters import abstract_parameters
from mllm_jax.models.vit import FeatureConfig, ViT, ViTConfig
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    FEW_SHAPES,
    assert_close,
    assert_loads_whole,
    drawn_images,
    read_config,
    read_parameters,
    write_folder,
)
from tests.support.proofs import Prover

# 30 pixels hold three whole patches of 8: what is left over must be dropped on the same side.
SHAPE = {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 30, "patch_size": 8}
OPEN_CLIP_FILE = "open_clip_model.safetensors"
REGISTERS: dict[str, Any] = {"num_register_tokens": 2}
GIANT: dict[str, Any] = REGISTERS | {"use_swiglu_ffn": True}
BESIDE_SIZES = {"dinov2_with_registers": REGISTERS, "dinov2_giant": GIANT}
FAMILIES: dict[str, Any] = {
    "clip": transformers.CLIPVisionConfig(**SHAPE, intermediate_size=44),
    "siglip": transformers.SiglipVisionConfig(**SHAPE, intermediate_size=44),
    "dinov2": transformers.Dinov2Config(**SHAPE, mlp_ratio=3),
    "dinov2_with_registers": transformers.Dinov2WithRegistersConfig(**SHAPE, **REGISTERS, mlp_ratio=3),
    "eva": transformers.Blip2VisionConfig(**SHAPE, intermediate_size=44),
    "internvit": transformers.InternVLVisionConfig(**SHAPE, intermediate_size=44),
    "dinov2_giant": transformers.Dinov2WithRegistersConfig(**SHAPE, **GIANT),
}


SHAPES = st.fixed_dictionaries(
    {
        "heads": st.integers(1, 4),
        "head_width": st.integers(4, 9),
        "inner": st.integers(2, 5),
        "layers": st.integers(1, 3),
        "patches": st.integers(1, 4),
        "patch": st.integers(1, 9),
        "rest": st.integers(0, 8),
    }
)


def make_tower(family: str, config: transformers.PretrainedConfig) -> torch.nn.Module:
    # No Auto class knows the tower of BLIP-2.
    return randomise((transformers.Blip2VisionModel if family == "eva" else transformers.AutoModel.from_config)(config))


@pytest.fixture(scope="module", params=FAMILIES)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_tower(request.param, FAMILIES[request.param])
    model.save_pretrained(folder)
    return folder, model


def features(config: ViTConfig, parameters: dict, pixels: np.ndarray) -> jax.Array:
    return jax.jit(ViT(config).apply)({"params": parameters}, pixels)


def patches_of(hidden: torch.Tensor, config: ViTConfig) -> torch.Tensor:
    kept = hidden[:, : int(config.features.keep_class_token)]
    return torch.cat([kept, hidden[:, config.prefix_tokens :]], dim=1)


@pytest.mark.parametrize(("layer", "scan"), [(-2, True), (-1, False), (1, True), (0, True)])
def test_hidden_states(tower: tuple[Path, torch.nn.Module], layer: int, scan: bool, proven: Prover) -> None:
    folder, model = tower
    config = read_config(folder, scan).model_copy(update={"features": FeatureConfig(layer=layer)})
    pixels, normalised = drawn_images(config, 2)
    expected = model(normalised, output_hidden_states=True).hidden_states[layer]
    ours = features(config, read_parameters(folder, config), pixels)
    proven(folder, "import", assert_close(ours, patches_of(expected, config)))


@pytest.mark.parametrize("family", FAMILIES)
@FEW_SHAPES
@given(shape=SHAPES, scan=st.booleans())
def test_any_shape(tmp_path_factory: pytest.TempPathFactory, family: str, shape: dict[str, int], scan: bool) -> None:
    """Hidden states of the last layer, whatever the sizes; pixels beside the last whole patch are dropped."""
    width = shape["heads"] * shape["head_width"]
    inner = {"mlp_ratio": shape["inner"]} if "dinov2" in family else {"intermediate_size": shape["inner"] * width}
    sizes = inner | {
        "hidden_size": width,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "patch_size": shape["patch"],
        "image_size": shape["patches"] * shape["patch"] + shape["rest"] % shape["patch"],
    }
    folder, config_class = tmp_path_factory.mktemp("drawn"), type(FAMILIES[family])
    model = make_tower(family, config_class(**sizes | BESIDE_SIZES.get(family, {})))
    model.save_pretrained(folder)
    config = read_config(folder, scan).model_copy(update={"features": FeatureConfig(layer=-1)})
    pixels, normalised = drawn_images(config, 2)
    expected = model(normalised, output_hidden_states=True).hidden_states[-1]
    assert_close(features(config, read_parameters(folder, config), pixels), patches_of(expected, config))


def test_normed_features_with_the_class_token(tower: tuple[Path, torch.nn.Module]) -> None:
    folder, model = tower
    config = read_config(folder)
    if not config.final_norm:
        return
    kept = FeatureConfig(layer=-1, post_norm=True, keep_class_token=config.class_token)
    config = config.model_copy(update={"features": kept})
    pixels, normalised = drawn_images(config, 2)
    hidden = model(normalised, output_hidden_states=True).hidden_states[-1]
    norm = model.layernorm if hasattr(model, "layernorm") else model.post_layernorm
    assert_close(features(config, read_parameters(folder, config), pixels), patches_of(norm(hidden), config))


@pytest.mark.parametrize("scan", [True, False])
def test_exported_weights_are_the_imported_ones(
    tower: tuple[Path, torch.nn.Module], scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder, model = tower
    config = read_config(folder, scan)
    write_folder(tmp_path / "exported", config, read_parameters(folder, config))
    # It serves pre-training alone, and only the config of towers without registers can say that it is not there.
    unused = frozenset({"embeddings.mask_token"}) if config.registers else frozenset()
    assert_loads_whole(type(model), tmp_path / "exported", model, unused)
    proven(folder, "export")


@pytest.mark.parametrize("image_size", [(48, 48), (20, 45), (24, 41)])
def test_dinov2_resizes_its_position_table(tmp_path: Path, image_size: tuple[int, int]) -> None:
    """At load, to the image's own grid, and in the forward pass from the table as it is: both as transformers does."""
    shape = SHAPE | {"image_size": 40, "num_hidden_layers": 1}
    model = randomise(transformers.Dinov2Model(transformers.Dinov2Config(**shape)))
    model.save_pretrained(tmp_path)
    stored = read_config(tmp_path).model_copy(update={"features": FeatureConfig(layer=-1)})
    resized = stored.model_copy(update={"image_size": image_size})
    kept = resized.model_copy(update={"position_grid": stored.grid})
    pixels, normalised = drawn_images(resized, 2)
    expected = patches_of(model(normalised, output_hidden_states=True).hidden_states[-1], resized)

    adjustments = encoder_adjustments(stored, resized)
    loaded = load(tmp_path, family_of_config(stored).table, abstract_parameters(resized), adjustments=adjustments)
    rows, columns = resized.grid
    assert loaded.adjusted == (f"position_embedding: position table resized from 5x5 to {rows}x{columns}",)
    assert_close(features(resized, loaded.parameters, pixels), expected)
    assert_close(features(kept, read_parameters(tmp_path, kept), pixels), expected)


def test_dinov2_of_a_non_square_size_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """transformers lays 2 x 8 positions out as 4 x 4 and resizes that to the image."""
    shape = SHAPE | {"image_size": (16, 64), "num_hidden_layers": 1}
    model = randomise(transformers.Dinov2Model(transformers.Dinov2Config(**shape)))
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path).model_copy(update={"features": FeatureConfig(layer=-1)})
    assert (config.image_size, config.table_grid) == ((16, 64), (4, 4))
    pixels, normalised = drawn_images(config, 1)
    expected = patches_of(model(normalised, output_hidden_states=True).hidden_states[-1], config)
    assert_close(features(config, read_parameters(tmp_path, config), pixels), expected)
    write_folder(tmp_path / "exported", config, read_parameters(tmp_path, config))
    exported = transformers.Dinov2Model.from_pretrained(tmp_path / "exported")
    again = patches_of(exported(normalised, output_hidden_states=True).hidden_states[-1], config)
    assert torch.equal(again, expected)


class OpenClipBlock(torch.nn.Module):
    """A residual block, its parts named as in open_clip's files."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential(
            OrderedDict(c_fc=torch.nn.Linear(width, inner), gelu=torch.nn.GELU(), c_proj=torch.nn.Linear(inner, width))
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(hidden)
        hidden = hidden + self.attn(normed, normed, normed, need_weights=False)[0]
        return hidden + self.mlp(self.ln_2(hidden))


class OpenClipTower(torch.nn.Module):
    """The vision tower of open_clip (its projection and the text tower are not ours)."""

    def __init__(self, width: int, layers: int, heads: int, inner: int, side: int, patch: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.zeros(width))
        self.positional_embedding = torch.nn.Parameter(torch.zeros((side // patch) ** 2 + 1, width))
        self.ln_pre = torch.nn.LayerNorm(width)
        blocks = [OpenClipBlock(width, heads, inner) for _ in range(layers)]
        self.transformer = torch.nn.ModuleDict({"resblocks": torch.nn.ModuleList(blocks)})
        self.ln_post = torch.nn.LayerNorm(width)
        self.proj = torch.nn.Parameter(torch.zeros(width, 7))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(len(pixels), 1, -1)
        hidden = self.ln_pre(torch.cat([token, patches], dim=1) + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            hidden = block(hidden)
        return self.ln_post(hidden)


@pytest.mark.parametrize("scan", [True, False])
def test_open_clip_files_are_read_as_they_are(tmp_path: Path, scan: bool, proven: Prover) -> None:
    tower = randomise(OpenClipTower(width=36, layers=2, heads=3, inner=45, side=32, patch=8))
    text = {
        "logit_scale": torch.zeros(()),
        "text.ln_final.weight": torch.zeros(3),
        "token_embedding.weight": torch.ones(2),
    }
    save_file({f"visual.{name}": value for name, value in tower.state_dict().items()} | text, tmp_path / OPEN_CLIP_FILE)
    sizes = {"image_size": 32, "layers": 2, "width": 36, "head_width": 12, "patch_size": 8, "mlp_ratio": 1.25}
    pixels = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    config = {"model_cfg": {"embed_dim": 7, "vision_cfg": sizes, "text_cfg": {}}, "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))

    kept = FeatureConfig(layer=-1, post_norm=True, keep_class_token=True)
    found = architecture_of(str(tmp_path), ViTConfig)
    wanted = found.model_copy(update={"features": kept, "stack": StackConfig(scan=scan)})
    here = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract_parameters(wanted)
    )
    parameters = load_backbone(str(tmp_path), wanted, abstract).parameters
    pixels, normalised = drawn_images(wanted, 2)
    proven(tmp_path, "import", assert_close(features(wanted, parameters, pixels), tower(normalised)))
    assert family_of_config(wanted).name == "clip"
