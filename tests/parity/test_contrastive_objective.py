"""CLIP and SigLIP whole against transformers: the loss of a batch and its gradients, from the same weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import unflatten_dict

from data_pipelines.assemble import empty_batch, place_row
from data_pipelines.batch import Batch
from data_pipelines.packing import Segment
from mllm_jax.interop.families.blocks import CLIP_BLOCKS, block_rules
from mllm_jax.interop.families.clip import CLIP
from mllm_jax.interop.families.siglip import SIGLIP
from mllm_jax.interop.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, ONE_ROW, SAME, Joined, Rule, Table
from mllm_jax.interop.weights import load
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters, logical_axes, make_model
from mllm_jax.training.objective import Objective, StageModel
from mllm_jax.training.objectives.contrastive import ContrastiveObjectiveConfig, contrastive_objective
from tests.support.hugging_face_folders import randomise
from tests.support.pairs import pair
from tests.support.parity import assert_gradients_close, drawn_images, save_gradients, with_gradients

WORDS, LENGTH, PAIRS, ROWS, SLOTS = 24, 6, 5, 2, 3
VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 0,
    "eos_token_id": WORDS - 1,
    "pad_token_id": 1,
}
DECODER = DecoderConfig(
    vocab_size=WORDS,
    width=20,
    layers=2,
    heads=4,
    kv_heads=4,
    head_width=5,
    feed_forward_width=28,
    feed_forward="plain",
    norm="layer",
    positions="learned",
    max_positions=LENGTH,
    tied_embeddings=True,
    attention_bias=True,
    feed_forward_bias=True,
)
TEXT_RULES = (
    Rule("text_model.embeddings.token_embedding.weight", "token_embedding/embedding"),
    Rule("text_model.embeddings.position_embedding.weight", "position_embedding/embedding"),
    Rule("text_model.final_layer_norm.weight", "final_norm/scale"),
    Rule("text_model.final_layer_norm.bias", "final_norm/bias"),
    *block_rules(replace(CLIP_BLOCKS, block="text_model.encoder.layers.{layer}.")),
)
POOL = "vision_model.head."
HEADS = {
    "clip": (
        Rule("visual_projection.weight", "image_projection/kernel", LINEAR),
        Rule("text_projection.weight", "text_projection/kernel", LINEAR),
        Rule("logit_scale", "scale", SAME),
    ),
    "siglip": (
        Rule("text_model.head.weight", "text_projection/kernel", LINEAR),
        Rule("text_model.head.bias", "text_projection/bias"),
        Rule("logit_scale", "scale", FLAT),
        Rule("logit_bias", "bias", FLAT),
        Rule(POOL + "probe", "pool/query", ONE_ROW),
        *(
            rule
            for place, name in enumerate(("query", "key", "value"))
            for rule in (
                Rule(f"{POOL}attention.in_proj_weight", f"pool/attention/{name}/kernel", LINEAR, joined=Joined(place)),
                Rule(f"{POOL}attention.in_proj_bias", f"pool/attention/{name}/bias", FLAT, joined=Joined(place)),
            )
        ),
        Rule(POOL + "attention.out_proj.weight", "pool/attention/output/kernel", LINEAR_FROM_HEADS),
        Rule(POOL + "attention.out_proj.bias", "pool/attention/output/bias"),
        Rule(POOL + "layernorm.weight", "pool/norm/scale"),
        Rule(POOL + "layernorm.bias", "pool/norm/bias"),
        Rule(POOL + "mlp.fc1.weight", "pool/feed_forward/up/kernel", LINEAR),
        Rule(POOL + "mlp.fc1.bias", "pool/feed_forward/up/bias"),
        Rule(POOL + "mlp.fc2.weight", "pool/feed_forward/down/kernel", LINEAR),
        Rule(POOL + "mlp.fc2.bias", "pool/feed_forward/down/bias"),
    ),
}


def table(variant: str) -> Table:
    """Of a whole model, as the towers and the objective's own parameters in one tree."""
    rules = CLIP.table.rules if variant == "clip" else SIGLIP.table.rules
    towers = Table(rules).below("", "encoder/") + Table(TEXT_RULES).below("", "decoder/")
    return towers + Table(HEADS[variant]).below("", "objective/")


def model_of(variant: str) -> torch.nn.Module:
    if variant == "clip":
        return transformers.CLIPModel(
            transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=10)
        )
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=TEXT | {"projection_size": 16}, vision_config=VISION)
    )


def staged(variant: str) -> tuple[Objective, MultimodalConfig, Any]:
    """The objective, the model, and the shapes of the towers and of what the objective owns."""
    if variant == "clip":
        family, decoder, own = CLIP, {"activation": "quick_gelu", "norm_epsilon": 1e-5}, {"width": 10}
    else:
        family, decoder, own = SIGLIP, {"activation": "gelu_tanh", "norm_epsilon": 1e-6, "attention": "prefix"}, {}
    config = MultimodalConfig(
        encoder=family.from_hugging_face({**VISION, "model_type": family.name}),
        decoder=DECODER.model_copy(update=decoder),
    )
    objective_config = ContrastiveObjectiveConfig(kind="contrastive", variant=variant, text_tokens=LENGTH, **own)
    shapes = abstract_parameters(config)
    made = contrastive_objective(StageModel(make_model(config), {}, shapes, logical_axes(config), ()), objective_config)
    heads = unflatten_dict(dict(made.own.shapes), sep="/")
    return made, config, {"encoder": shapes["encoder"], "decoder": shapes["decoder"], "objective": heads}


def batch_of(config: MultimodalConfig, variant: str) -> tuple[Batch, dict[str, torch.Tensor]]:
    """Five pairs in two rows of three slots, as ours and theirs; SigLIP's text tower sees whole texts alone."""
    pixels, normalised = drawn_images(config.encoder, PAIRS)
    texts = []
    for number in range(PAIRS):
        length = LENGTH if variant == "siglip" else 2 + number
        tokens = np.random.default_rng(number).integers(2, WORDS - 1, length, np.int32)
        texts.append(np.append(tokens[:-1], WORDS - 1).astype(np.int32))
    batch = empty_batch(ROWS, SLOTS * LENGTH, SLOTS, (8, 8))
    for row in range(ROWS):
        numbers = range(row * SLOTS, min(PAIRS, (row + 1) * SLOTS))
        rendered = [replace(pair(4), tokens=texts[number], supervised=texts[number] > -1) for number in numbers]
        segments = [replace(each, in_answer=np.zeros(len(each.tokens), bool)) for each in rendered]
        place_row(batch, row, tuple(Segment(each, 0, 0, 0) for each in segments), 0)
        batch.images[row, : len(numbers)] = pixels[numbers.start : numbers.stop]
    padded = [np.pad(text, (0, LENGTH - len(text)), constant_values=1) for text in texts]
    theirs = {"input_ids": torch.tensor(np.stack(padded)).long(), "pixel_values": normalised}
    return jax.tree.map(jnp.asarray, batch), theirs


@pytest.mark.parametrize("variant", ["clip", "siglip"])
def test_the_loss_and_its_gradients(variant: str, tmp_path: Path) -> None:
    objective, config, shapes = staged(variant)
    model = with_gradients(randomise(model_of(variant)))
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    model.save_pretrained(tmp_path)
    parameters = load(tmp_path, table(variant), shapes).parameters
    batch, theirs = batch_of(config, variant)

    def mean(parameters: Any) -> jax.Array:
        return objective(parameters, batch) / objective.weight(batch)

    loss, gradients = jax.jit(jax.value_and_grad(mean))(parameters)
    expected = model(**theirs, return_loss=True).loss
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    save_gradients(tmp_path, model)
    assert_gradients_close(gradients, load(tmp_path, table(variant), shapes).parameters)
