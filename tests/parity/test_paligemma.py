"""PaliGemma 1 and 2 against transformers: prompts with two images and answers behind them, random weights, float32."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.families.paligemma import DECODERS, paligemma
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.parameters import Parameters, abstract_parameters
from mllm_jax.models.presets import DECODERS as DECODER_PRESETS
from mllm_jax.models.presets import ENCODERS
from mllm_jax.models.vit import FeatureConfig
from mllm_jax.training.cross_entropy import weighted_cross_entropy
from tests.support.hugging_face_folders import randomise
from tests.support.parity import (
    assert_close,
    assert_gradients_close,
    assert_loads_whole,
    drawn_images,
    image_places,
    read_config,
    read_parameters,
    write_folder,
)
from tests.support.proofs import Prover

IMAGE = 60
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "image_size": 18,
    "patch_size": 6,
    "vision_use_head": False,
}
TEXT = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
TEXTS: dict[str, dict[str, Any]] = {
    "paligemma": TEXT | {"model_type": "gemma"},
    "paligemma 2": TEXT | {"model_type": "gemma2", "sliding_window": 7, "query_pre_attn_scalar": 13},
}
PROMPT = 24
"""Tokens before the answer: two images of nine tokens and six of text."""


def make(text: dict[str, Any]) -> torch.nn.Module:
    config = transformers.PaliGemmaConfig(
        vision_config=TOWER, text_config=text, image_token_index=IMAGE, projection_dim=36, hidden_size=36
    )
    model = randomise(transformers.PaliGemmaForConditionalGeneration(config))
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():
            if "norm" in name:
                parameter -= 1  # One is added to it: norms that double what they norm would sharpen every softmax.
    return model


def read(folder: Path) -> torch.nn.Module:
    # Only eager attention applies Gemma 2's caps.
    model_class = transformers.PaliGemmaForConditionalGeneration
    return model_class.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=TEXTS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    make(TEXTS[request.param]).save_pretrained(folder)
    return folder


def answered(config: MultimodalConfig) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """Two rows, as our model takes them and as theirs does."""
    index = image_places(config, rows=2)
    tokens = np.where(index < 0, np.random.default_rng(0).integers(1, IMAGE, index.shape), IMAGE)
    answers = np.broadcast_to(np.arange(index.shape[1]) >= PROMPT, index.shape)
    pixels, normalised = drawn_images(config.encoder, 4)
    ours = {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(index.shape[1]), index.shape),
        "images": pixels.reshape(2, 2, *pixels.shape[1:]),
        "image_mask": np.ones((2, 2), bool),
        "image_index": index,
        "answer_mask": answers,
    }
    theirs = {
        "input_ids": torch.tensor(tokens),
        "pixel_values": normalised,
        "token_type_ids": torch.tensor(answers.astype(int)),
        "attention_mask": torch.ones(index.shape, dtype=torch.int64),
    }
    return {name: jnp.asarray(array) for name, array in ours.items()}, theirs


@pytest.mark.parametrize("scan", [True, False])
def test_logits_and_exported_weights(written: Path, scan: bool, tmp_path: Path, proven: Prover) -> None:
    config = read_config(written, scan)
    assert image_tokens(config) == 9 and config.decoder.attention == "prefix"
    parameters = read_parameters(written, config)
    ours, theirs = answered(config)
    model = read(written)
    logits = jax.jit(Multimodal(config).apply)({"params": parameters}, **ours)
    proven(written, "import", assert_close(logits, model(**theirs).logits))
    exported = tmp_path / "exported"
    write_folder(exported, config, parameters, image_token_index=IMAGE)
    assert_loads_whole(transformers.AutoModelForImageTextToText, exported, model)
    assert read_config(exported, scan) == config
    proven(written, "export")


def test_gradients(written: Path, tmp_path: Path, proven: Prover) -> None:
    """Of the loss on the answer alone, by every parameter."""
    config = read_config(written)
    parameters = read_parameters(written, config)
    ours, theirs = answered(config)
    targets, weights = jnp.roll(ours["tokens"], -1, axis=1), jnp.roll(ours["answer_mask"], -1, axis=1)
    weights = weights.at[:, -1].set(False).astype(jnp.float32)

    @jax.jit
    @jax.grad
    def gradients(parameters: Parameters) -> jax.Array:
        logits = Multimodal(config).apply({"params": parameters}, **ours)
        return weighted_cross_entropy(logits, targets.astype(jnp.int32), weights) / weights.sum()

    model = read(written)
    labels = torch.where(theirs["token_type_ids"] == 1, theirs["input_ids"], -100)
    model(**theirs, labels=labels).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path)
    assert_gradients_close(gradients(parameters), read_parameters(tmp_path, config))
    proven(written, "train")


def test_published_sizes() -> None:
    """Counted, as transformers counts them, from what the published config.json says; images take 256 tokens."""
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    text = {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 257216, "num_image_tokens": 256}
    config = {"model_type": "paligemma", "vision_config": tower | {"patch_size": 14}, "text_config": text}
    model = family_of_folder(config).from_hugging_face(config)
    assert image_tokens(model) == 256
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(model))) == 2_923_466_480
    assert model.encoder == ENCODERS["paligemma_vit_224"]
    assert model.decoder == DECODER_PRESETS["paligemma_3b"]
    larger = model.model_copy(
        update={"encoder": ENCODERS["paligemma_vit_448"], "decoder": DECODER_PRESETS["paligemma2_3b"]}
    )
    assert image_tokens(larger) == 1024
    again = family_of_config(larger).to_hugging_face(larger)
    assert family_of_folder(again).from_hugging_face(again) == larger


def test_what_no_paligemma_does_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "paligemma", "text_config": {"model_type": "llama"}}
    with pytest.raises(FamilyError, match=r"model_type is 'llama' in config\.json; gemma, gemma2 can be imported"):
        family_of_folder(config)
    model = family_of_folder({"model_type": "paligemma"}).from_hugging_face({"model_type": "paligemma"})
    changes = {
        "have attention = 'prefix', but this one has 'causal'": {
            "decoder": model.decoder.model_copy(update={"attention": "causal"}),
            "connector": MLPConfig(depth=3),
        },
        "have a connector of kind 'linear' with bias": {"connector": MLPConfig(depth=3)},
        "PaliGemma models have features =": {
            "encoder": model.encoder.model_copy(update={"features": FeatureConfig(layer=-1)})
        },
    }
    for message, change in changes.items():
        with pytest.raises(FamilyError, match=message):
            family_of_config(model.model_copy(update=change))


@pytest.mark.parametrize("decoder", DECODERS)
def test_names_of_published_files_are_read(decoder: Any, tmp_path: Path) -> None:
    """Files keep the output projection beside the embedding that it repeats, under the language model's name."""
    table = paligemma(decoder).table
    assert table.canonical("model.language_model.layers.0.mlp.up_proj.weight") == (
        "language_model.model.layers.0.mlp.up_proj.weight"
    )
    assert ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight") in table.copies
