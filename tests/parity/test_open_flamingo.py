"""Whole OpenFlamingo models against their arithmetic in torch, from random weights, float32.

The reference is written from the paper (https://arxiv.org/abs/2204.14198, appendix A) around transformers' CLIP tower
and language models; its modules carry the names that OpenFlamingo's checkpoints have.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding
from safetensors.torch import load_file, save_file
from torch import nn

from mllm_jax.interop.backbones import architecture_of, load_backbone
from mllm_jax.interop.connector_weights import covered, load_connector
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.families.open_flamingo import open_flamingo_table
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.interop.weights import save
from mllm_jax.models.connectors.gated_cross_attention import GatedCrossAttentionConfig
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.connectors.perceiver import PerceiverConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.parameters import Parameters, abstract_parameters
from mllm_jax.models.vit import FeatureConfig, ViTConfig
from tests.support.hugging_face_folders import randomise
from tests.support.parity import assert_close, drawn_images, with_stack
from tests.support.proofs import Prover

WIDTH, TOWER_WIDTH, HEADS, HEAD_WIDTH, LATENTS = 24, 20, 2, 6, 3
VOCABULARY = 59
TOWER = {
    "hidden_size": TOWER_WIDTH,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "hidden_act": "quick_gelu",
}
LLAMA = transformers.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=28,
    num_hidden_layers=5,
    num_attention_heads=3,
    num_key_value_heads=1,
    tie_word_embeddings=False,
)
OPT = transformers.OPTConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    word_embed_proj_dim=WIDTH,
    ffn_dim=28,
    num_hidden_layers=5,
    num_attention_heads=3,
    max_position_embeddings=32,
)
DECODERS = {"llama": (LLAMA, "model.layers", 2), "opt": (OPT, "model.decoder.layers", 1)}
"""Config, where its layers are, layers from one gated block to the next."""
BLOCKS = r"lang_encoder\.model\.layers\.(\d+)\.gated_cross_attn_layer\."
IMAGE = VOCABULARY - 1
# Interleaved: text before the first image, two images, and a row that begins with them.
INDEX = np.full((2, 12), -1, np.int32)
INDEX[0, [2, 7]] = [0, 1]
INDEX[1, [0, 1]] = [0, 1]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    query, key, value = (part.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / HEAD_WIDTH**0.5
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], -1e30)
    weights = scores.softmax(-1)
    if seen is not None:
        weights = weights * seen.any(-1)[:, None, :, None]
    return (weights @ value).transpose(1, 2).flatten(-2)


def feed_forward(width: int) -> nn.Sequential:
    up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
    return nn.Sequential(nn.LayerNorm(width), up, nn.GELU(), down)


class Attention(nn.Module):
    def __init__(self, width: int, read: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, HEADS * HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(read, 2 * HEADS * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(HEADS * HEAD_WIDTH, width, bias=False)

    def read(self, hidden: torch.Tensor, context: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        return self.to_out(attend(self.to_q(hidden), *self.to_kv(context).chunk(2, -1), seen))


class LatentAttention(Attention):
    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, latents: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
        queries = self.norm_latents(latents)
        return self.read(queries, torch.cat([self.norm_media(media), queries], 1))


class Resampler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(LATENTS, width))
        self.layers = nn.ModuleList(nn.ModuleList([LatentAttention(width), feed_forward(width)]) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, media: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(len(media), -1, -1)
        for attention, processing in self.layers:
            latents = latents + attention(latents, media)
            latents = latents + processing(latents)
        return self.norm(latents)


class NormedAttention(Attention):
    def __init__(self) -> None:
        super().__init__(WIDTH, TOWER_WIDTH)
        self.norm = nn.LayerNorm(WIDTH)


class GatedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ff = NormedAttention(), feed_forward(WIDTH)
        self.attn_gate, self.ff_gate = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def forward(self, hidden: torch.Tensor, media: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        attended = self.attn.read(self.attn.norm(hidden), media, seen)
        hidden = hidden + self.attn_gate.tanh() * attended
        return hidden + self.ff_gate.tanh() * self.ff(hidden)


class Layer(nn.Module):
    """A layer of the language model, and the gated block before it."""

    media: Any = None

    def __init__(self, gated: GatedBlock | None, layer: nn.Module) -> None:
        super().__init__()
        self.gated_cross_attn_layer, self.decoder_layer = gated, layer

    def forward(self, hidden: torch.Tensor, *arguments: Any, **others: Any) -> Any:
        if self.gated_cross_attn_layer is not None:
            hidden = self.gated_cross_attn_layer(hidden, *self.media)
        return self.decoder_layer(hidden, *arguments, **others)


class Flamingo(nn.Module):
    def __init__(self, tower: nn.Module, decoder: nn.Module, layers: str, every: int) -> None:
        super().__init__()
        self.vision_encoder, self.perceiver, self.lang_encoder = tower, Resampler(TOWER_WIDTH), decoder
        place, _, name = layers.rpartition(".")
        stack = decoder.get_submodule(layers)
        gated = (GatedBlock() if (number + 1) % every == 0 else None for number in range(len(stack)))
        self.layers = [Layer(block, layer) for block, layer in zip(gated, stack, strict=True)]
        setattr(decoder.get_submodule(place), name, nn.ModuleList(self.layers))

    def forward(self, tokens: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        rows, slots = images.shape[:2]
        features = self.vision_encoder(images.flatten(0, 1), output_hidden_states=True).hidden_states[-1][:, 1:]
        latest = (tokens == IMAGE).cumsum(-1)
        seen = latest[..., None] == torch.arange(1, slots + 1).repeat_interleave(LATENTS)
        for layer in self.layers:
            layer.media = self.perceiver(features).reshape(rows, slots * LATENTS, -1), seen
        return self.lang_encoder(tokens, use_cache=False).logits


class Reference:
    """The folders of a model, and the model."""

    def __init__(self, folder: Path, kind: str) -> None:
        config, layers, self.every = DECODERS[kind]
        tower = randomise(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER)))
        decoder = randomise(transformers.AutoModelForCausalLM.from_config(config), 1)
        self.tower, self.decoder, self.trained = folder / "tower", folder / "decoder", folder / "trained"
        tower.save_pretrained(self.tower)
        decoder.save_pretrained(self.decoder)
        model = Flamingo(tower, decoder, layers, self.every)
        for seed, part in enumerate([model.perceiver, *(layer.gated_cross_attn_layer for layer in model.layers)]):
            if part is not None:
                randomise(part, seed + 2)
        randomise(decoder.get_input_embeddings(), 20)
        self.model = model.eval()
        state = model.state_dict()
        kept = ("perceiver.", "gated_cross_attn_layer.", "embed_tokens.", "embed_positions.")
        self.state = {name: tensor.clone() for name, tensor in state.items() if any(part in name for part in kept)}
        self.state = {name: tensor for name, tensor in self.state.items() if not name.startswith("vision_encoder.")}
        self.write(self.state)

    def write(self, state: dict[str, torch.Tensor]) -> None:
        self.trained.mkdir(exist_ok=True)
        save_file(state, self.trained / "model.safetensors")

    def config(self, scan: bool = True) -> MultimodalConfig:
        encoder = architecture_of(str(self.tower), ViTConfig).model_copy(
            update={"features": FeatureConfig(layer=-1, post_norm=False)}
        )
        sizes = {"heads": HEADS, "head_width": HEAD_WIDTH}
        stack = StackConfig(scan=scan)
        resampler = PerceiverConfig(latents=LATENTS, layers=2, projection=False, stack=stack, **sizes)
        connector = GatedCrossAttentionConfig(resampler=resampler, every=self.every, first=self.every - 1, **sizes)
        decoder = architecture_of(str(self.decoder), DecoderConfig)
        return with_stack(MultimodalConfig(encoder=encoder, connector=connector, decoder=decoder), stack)

    def parameters(self, config: MultimodalConfig) -> Parameters:
        abstract = placed(config)
        found: dict[str, Any] = {}
        for part, folder in (("encoder", self.tower), ("decoder", self.decoder)):
            own = flatten_dict(abstract_parameters(getattr(config, part)), sep="/")
            leaves = flatten_dict(abstract[part], sep="/")
            tree = unflatten_dict({path: leaves[path] for path in own}, sep="/")
            found |= flatten_dict({part: load_backbone(str(folder), getattr(config, part), tree).parameters}, sep="/")
        found |= flatten_dict(load_connector(str(self.trained), config, abstract).parameters, sep="/")
        return unflatten_dict(found, sep="/")


def placed(config: MultimodalConfig) -> Parameters:
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: leaf.update(sharding=here), abstract_parameters(config))


@pytest.fixture(scope="module", params=DECODERS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("scan", [True, False])
def test_logits_and_exported_weights(reference: Reference, scan: bool, tmp_path: Path, proven: Prover) -> None:
    config = reference.config(scan)
    assert image_tokens(config) == 1
    parameters = reference.parameters(config)
    tokens = np.where(INDEX < 0, np.random.default_rng(0).integers(0, IMAGE, INDEX.shape), IMAGE)
    pixels, normalised = drawn_images(config.encoder, 4)
    positions = np.broadcast_to(np.arange(INDEX.shape[1]), INDEX.shape)
    images = pixels.reshape(2, 2, *pixels.shape[1:])
    arrays = tokens, np.ones_like(tokens), positions, images, np.ones((2, 2), bool), INDEX
    ours = jax.jit(Multimodal(config).apply)({"params": parameters}, *map(jnp.asarray, arrays))
    theirs = reference.model(torch.tensor(tokens), normalised.reshape(2, 2, *normalised.shape[1:]))
    proven("open_flamingo", "import", assert_close(ours, theirs))

    table = open_flamingo_table(config)
    save(tmp_path, table, unflatten_dict(covered(table, parameters), sep="/"))
    stored = load_file(tmp_path / "model.safetensors")
    # The output projection, which OpenFlamingo freezes, goes with the embedding wherever the two are apart.
    frozen = {"lang_encoder.lm_head.weight"} if not config.decoder.tied_embeddings else set()
    assert stored.keys() - frozen == reference.state.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in reference.state.items())
    proven("open_flamingo", "export")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("stored"), "llama")


def test_the_names_of_whole_state_dicts_are_known(llama: Reference) -> None:
    """The blocks in a list of their own, wrapped for many processes, and beside them the frozen parts."""
    config = llama.config()
    expected = load_connector(str(llama.trained), config, placed(config)).parameters
    whole = {f"module.{name}": tensor.clone() for name, tensor in llama.model.state_dict().items()}
    apart = {
        re.sub(BLOCKS, r"lang_encoder.gated_cross_attn_layers.\1.", name): tensor for name, tensor in whole.items()
    }
    assert any("gated_cross_attn_layers.3.attn_gate" in name for name in apart)
    llama.write(apart)
    loaded = load_connector(str(llama.trained), config, placed(config))
    llama.write(llama.state)
    assert "module.lang_encoder.model.layers.0.decoder_layer.mlp.up_proj.weight" in loaded.ignored
    output = np.asarray(loaded.parameters["decoder"].pop("output")["kernel"])
    np.testing.assert_array_equal(output.T, whole["module.lang_encoder.lm_head.weight"])
    jax.tree.map(np.testing.assert_array_equal, loaded.parameters, expected)


def test_every_tensor_is_accounted_for(llama: Reference) -> None:
    config = llama.config()
    gate = "lang_encoder.model.layers.1.gated_cross_attn_layer.attn_gate"
    others = {name: tensor for name, tensor in llama.state.items() if name != gate}
    llama.write(others | {"perceiver.frame_embs": torch.zeros(4, TOWER_WIDTH)})
    with pytest.raises(WeightsError) as error:
        load_connector(str(llama.trained), config, placed(config))
    llama.write(llama.state)
    assert f"missing {gate}" in str(error.value) and "unexpected perceiver.frame_embs" in str(error.value)


def test_a_part_that_is_not_asked_for_is_left_aside(llama: Reference) -> None:
    config = llama.config()
    decoder = {"decoder": placed(config)["decoder"]}
    assert load_connector(str(llama.trained), config, decoder).parameters.keys() == {"decoder"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connector": LinearConfig()}, "a connector of kind 'gated_cross_attention'"),
        ({"connector": {"first": 0}}, "OpenFlamingo models have first = 1"),
        ({"connector": {"gate": "vector"}}, "OpenFlamingo models have gate = 'scalar'"),
        ({"connector": {"feed_forward_width": 95}}, "feed_forward_width"),
        ({"resampler": {"activation": "relu"}}, "OpenFlamingo models have activation = 'gelu'"),
        ({"encoder": {"features": FeatureConfig()}}, "OpenFlamingo models have features"),
    ],
)
def test_what_an_open_flamingo_cannot_be_is_refused(llama: Reference, change: dict[str, Any], message: str) -> None:
    config = llama.config()
    ((part, fields),) = change.items()
    if part == "resampler":
        part, fields = "connector", {part: config.connector.resampler.model_copy(update=fields)}
    if isinstance(fields, dict):
        fields = getattr(config, part).model_copy(update=fields)
    with pytest.raises(FamilyError, match=message):
        open_flamingo_table(config.model_copy(update={part: fields}))


def test_defaults_may_be_written_out(llama: Reference) -> None:
    config = llama.config()
    resampler = config.connector.resampler.model_copy(update={"kv_heads": HEADS, "feed_forward_width": 4 * TOWER_WIDTH})
    connector = config.connector.model_copy(update={"resampler": resampler, "feed_forward_width": 4 * WIDTH})
    assert open_flamingo_table(config.model_copy(update={"connector": connector})) == open_flamingo_table(config)
