"""InstructBLIP against transformers: the Q-Former that reads text, whole models and one step, in float32."""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from mllm_jax.interop.families.choice import family_of_config, family_of_folder
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.weights import load
from mllm_jax.models.connectors.q_former import QFormer, open_mask
from mllm_jax.models.layers.stack import StackConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.parameters import Parameters, abstract_parameters
from tests.parity.test_blip2 import IMAGE, Q_FORMER, TEXTS, TOWER
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

WORDS, POSITIONS = 41, 13
ROWS, SLOTS = 2, 2
CLASS = transformers.InstructBlipForConditionalGeneration


def make(folder: Path, text: str, every: int = 2, layers: int = 2) -> torch.nn.Module:
    q_former = {"num_hidden_layers": layers, "cross_attention_frequency": every}
    words = {"vocab_size": WORDS, "max_position_embeddings": POSITIONS}
    config = transformers.InstructBlipConfig(
        vision_config=TOWER,
        qformer_config=Q_FORMER | q_former | words,
        text_config=TEXTS[text].to_dict(),
        num_query_tokens=5,
        image_token_index=IMAGE,
    )
    model = randomise(CLASS(config))
    with torch.no_grad():
        # As they are drawn, a decoder's softmaxes are so sharp that transformers' own logits are 1e-4 from exact ones.
        for parameter in model.language_model.parameters():
            parameter *= 0.5 if parameter.ndim > 1 else 1
    model.save_pretrained(folder)
    return model


def drawn_instructions(count: int, length: int = 9) -> np.ndarray:
    """Instructions of every length from 1 on, -1 behind them."""
    ids = np.random.default_rng(2).integers(0, WORDS, (count, length))
    return np.where(np.arange(length) <= np.arange(count)[:, None] % length, ids, -1)


def as_theirs(instructions: np.ndarray) -> dict[str, torch.Tensor]:
    ids, mask = torch.tensor(np.maximum(instructions, 0)), torch.tensor(instructions >= 0).long()
    return {"qformer_input_ids": ids, "qformer_attention_mask": mask}


def arrays(config: MultimodalConfig) -> tuple[list[jax.Array], dict[str, torch.Tensor]]:
    """Two rows of text with two images each, as our model takes them and as theirs does."""
    index = image_places(config, ROWS)
    tokens = np.where(index < 0, np.random.default_rng(0).integers(0, IMAGE, index.shape), IMAGE)
    pixels, normalised = drawn_images(config.encoder, ROWS * SLOTS)
    instructions = drawn_instructions(ROWS * SLOTS)
    positions = np.broadcast_to(np.arange(index.shape[1]), index.shape)
    images, filled = pixels.reshape(ROWS, SLOTS, *pixels.shape[1:]), np.ones((ROWS, SLOTS), bool)
    ours = [tokens, np.ones_like(tokens), positions, images, filled, index, instructions.reshape(ROWS, SLOTS, -1)]
    theirs = {"input_ids": torch.tensor(tokens), "pixel_values": normalised} | as_theirs(instructions)
    return [jnp.asarray(array) for array in ours], theirs


def logits_and_features(model: Multimodal, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, _, _, images, image_mask, _, instructions = arrays
    return model(*arrays[:-1], instructions=instructions), model.encode_images(images, image_mask, instructions)


@pytest.mark.parametrize(("text", "every", "scan"), [("llama", 2, True), ("opt", 1, False)])
def test_features_logits_and_exported_weights(
    text: str, every: int, scan: bool, tmp_path: Path, proven: Prover
) -> None:
    folder = tmp_path / "theirs"
    model = make(folder, text, every)
    config = read_config(folder, scan)
    assert image_tokens(config) == 5
    parameters = read_parameters(folder, config)
    ours, theirs = arrays(config)
    logits, features = jax.jit(partial(nn.apply(logits_and_features, Multimodal(config)), {"params": parameters}))(
        *ours
    )
    proven(folder, "import", assert_close(logits, model(**theirs).logits))
    expected = model.get_image_features(**{name: theirs[name] for name in theirs if name != "input_ids"})
    assert_close(features.reshape(ROWS * SLOTS, 5, -1), expected.pooler_output)
    exported = tmp_path / "exported"
    write_folder(exported, config, parameters, image_token_index=IMAGE)
    assert_loads_whole(CLASS, exported, model)
    assert read_config(exported, scan) == config
    proven(folder, "export")


@pytest.mark.parametrize(("every", "scan"), [(2, True), (1, False)])
def test_the_states_of_queries_and_text(tmp_path: Path, every: int, scan: bool) -> None:
    """What the text becomes is compared too, where there is text; no state depends on the places behind it."""
    model = make(tmp_path, "llama", every, layers=4)
    config = read_config(tmp_path)
    reference: InstructBlipQFormerModel = model.qformer
    stack = StackConfig(scan=scan)
    connector = config.connector.model_copy(update={"stack": stack})
    parameters = dict(read_parameters(tmp_path, config.model_copy(update={"connector": connector}))["connector"])
    del parameters["projection"]
    drawn = np.random.default_rng(3).standard_normal((4, 7, TOWER["hidden_size"])).astype(np.float32)
    features = jnp.asarray(drawn)
    instructions = drawn_instructions(4)
    text = as_theirs(instructions)
    mask = torch.cat([torch.ones(4, 5, dtype=torch.long), text["qformer_attention_mask"]], dim=1)
    theirs = reference(
        input_ids=text["qformer_input_ids"],
        attention_mask=mask,
        query_embeds=model.query_tokens.expand(4, -1, -1),
        encoder_hidden_states=torch.tensor(drawn),
    ).last_hidden_state
    run = jax.jit(lambda ids: QFormer(connector).apply({"params": parameters}, features, ids, open_mask(5, ids)))
    ours = run(jnp.asarray(instructions))
    there = np.asarray(mask, bool)
    assert_close(np.asarray(ours)[there], theirs[torch.tensor(there)])
    padded = run(jnp.asarray(np.pad(instructions, ((0, 0), (0, 3)), constant_values=-1)))
    assert_close(np.asarray(padded)[:, :14][there], torch.tensor(np.asarray(ours)[there]))


def test_one_gradient_step(tmp_path: Path, proven: Prover) -> None:
    """The gradient of every parameter, and the loss after a step of plain gradient descent."""
    model = make(tmp_path, "llama")
    config = read_config(tmp_path)
    parameters = read_parameters(tmp_path, config)
    ours, theirs = arrays(config)
    tokens, index = ours[0], ours[5]
    weights = (index[:, 1:] < 0) / (index[:, 1:] < 0).sum()

    def loss(parameters: Parameters) -> jax.Array:
        logits = Multimodal(config).apply({"params": parameters}, *ours[:-1], instructions=ours[-1])[:, :-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return -(chosen * weights).sum()

    step = jax.jit(jax.value_and_grad(loss))
    before, gradients = step(parameters)
    labels = torch.tensor(np.where(np.asarray(index) < 0, tokens, -100)).long()
    their_loss = model(**theirs, labels=labels).loss
    their_loss.backward()
    assert float(before) == pytest.approx(their_loss.item(), rel=1e-5)
    named = dict(model.named_parameters())
    expected = gradients_of(named, tmp_path, config)
    assert_gradients_close(gradients, expected)
    proven(tmp_path, "train")
    rate = 1e-3
    after, _ = step(jax.tree.map(lambda leaf, gradient: leaf - rate * gradient, parameters, gradients))
    with torch.no_grad():
        for tensor in named.values():
            tensor -= rate * tensor.grad
    assert float(after) == pytest.approx(model(**theirs, labels=labels).loss.item(), rel=1e-4)
    assert float(after) < float(before)


def gradients_of(named: dict[str, torch.Tensor], folder: Path, config: MultimodalConfig) -> Any:
    """The reference's gradients as our tree."""
    place = folder / "gradients"
    place.mkdir()
    save_file({name: tensor.grad.contiguous() for name, tensor in named.items()}, place / "model.safetensors")
    table = family_of_config(config).table
    return load(place, table, abstract_parameters(config)).parameters


def test_keys_that_a_config_leaves_out_have_transformers_defaults() -> None:
    config = {"model_type": "instructblip"}
    ours = family_of_folder(config).from_hugging_face(config)
    theirs = transformers.InstructBlipConfig()
    text = theirs.qformer_config
    assert image_tokens(ours) == theirs.num_query_tokens == 32
    assert (ours.connector.text.vocab_size, ours.connector.text.max_positions) == (
        text.vocab_size,
        text.max_position_embeddings,
    )
    assert ours.encoder.width == theirs.vision_config.hidden_size
    assert family_of_config(ours).name == "instructblip(opt)"


def test_published_size() -> None:
    """InstructBLIP's Q-Former for Vicuna: its number of parameters."""
    config = transformers.InstructBlipQFormerConfig(vocab_size=30523)
    with torch.device("meta"):
        reference = InstructBlipQFormerModel(config)
    folder = {"model_type": "instructblip", "qformer_config": config.to_dict(), "text_config": {"model_type": "llama"}}
    ours = family_of_folder(folder).from_hugging_face(folder)
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract_parameters(ours)["connector"])]
    assert sum(sizes) == sum(tensor.numel() for tensor in reference.parameters()) + 32 * 768 + 768 * 4096 + 4096


def test_what_an_instructblip_cannot_be_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    config = read_config(tmp_path)
    silent = config.model_copy(update={"connector": config.connector.model_copy(update={"text": None})})
    assert family_of_config(silent).name == "blip2(llama)"
    bare = config.encoder.model_copy(update={"class_token": False})
    with pytest.raises(FamilyError, match="BLIP-2 models have a Q-Former that reads no text"):
        family_of_config(config.model_copy(update={"encoder": bare}))


@pytest.mark.parametrize("text", [transformers.T5Config().to_dict(), {"model_type": "t5"}])
def test_the_variant_with_an_encoder_decoder_is_refused(text: dict[str, Any]) -> None:
    config = {"model_type": "instructblip", "text_config": text, "use_decoder_only_language_model": False}
    with pytest.raises(FamilyError, match="'t5', which has an encoder of its own"):
        family_of_folder(config)
