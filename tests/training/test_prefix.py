"""What prefix attention learns from packed rows is what it learns from each record alone, and what generation sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.assemble import empty_batch, place_row
from data_pipelines.batch import Batch
from data_pipelines.packing import Segment
from data_pipelines.record import ByteRange, ImagePart
from data_pipelines.rendered import RenderedRecord
from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import Multimodal, MultimodalConfig, image_tokens
from mllm_jax.models.parameters import Parameters
from mllm_jax.models.vit import ViTConfig
from mllm_jax.training.objectives.next_token import NextTokenConfig, next_token_objective
from tests.support.parameters import drawn_parameters

CONFIG = MultimodalConfig(
    encoder=ViTConfig(image_size=(8, 8), patch_size=4, width=12, layers=1, heads=2, feed_forward_width=16),
    connector=LinearConfig(),
    decoder=DecoderConfig(
        **{"vocab_size": 40, "width": 18, "layers": 2, "heads": 3, "kv_heads": 1, "head_width": 6},
        feed_forward_width=24,
        attention="prefix",
    ),
)
MODEL = Multimodal(CONFIG)
IMAGE_TOKENS = image_tokens(CONFIG)
PICTURE = ImagePart(ByteRange("picture"))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return drawn_parameters(CONFIG)


def conversation(seed: int, prompts: tuple[int, ...], learned: tuple[bool, ...], images: int) -> RenderedRecord:
    """Prompts of these lengths, an answer of three tokens behind each, and images that open the first prompt."""
    in_answer = np.concatenate([np.repeat([False, True], [length, 3]) for length in prompts])
    learns = np.concatenate(
        [np.repeat([False, learn], [length, 3]) for length, learn in zip(prompts, learned, strict=True)]
    )
    tokens = np.random.default_rng(seed).integers(1, 40, len(in_answer)).astype(np.int32)
    starts = tuple(IMAGE_TOKENS * image for image in range(images))
    return RenderedRecord("test", tokens, learns, in_answer, starts, (PICTURE,) * images)


RECORDS = (
    conversation(1, (11,), (True,), images=2),
    conversation(2, (6, 4), (False, True), images=1),
    conversation(3, (5, 3), (True, True), images=0),
)


def rows_of(packed: tuple[tuple[RenderedRecord, ...], ...], pictures: tuple[tuple[int, ...], ...]) -> Batch:
    batch = empty_batch(len(packed), 44, 3, CONFIG.encoder.image_size)
    for row, (records, shown) in enumerate(zip(packed, pictures, strict=True)):
        place_row(batch, row, tuple(Segment(record, 0, 0, 0) for record in records), IMAGE_TOKENS)
        batch.images[row, : len(shown)] = PIXELS[list(shown)]
    return jax.tree.map(jnp.asarray, batch)


def test_packed_and_alone_give_one_loss_and_one_gradient(parameters: Parameters) -> None:
    learn = jax.jit(jax.value_and_grad(next_token_objective(MODEL, NextTokenConfig())))
    packed, gradient = learn(parameters, rows_of((RECORDS,), ((0, 1, 2),)))
    alone, expected = learn(parameters, rows_of(tuple((record,) for record in RECORDS), ((0, 1), (2,), ())))
    np.testing.assert_allclose(packed, alone, rtol=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4), gradient, expected
    )


def test_a_question_that_follows_an_answer_is_answered_as_it_was_learned(parameters: Parameters) -> None:
    record = RECORDS[1]
    prompt = Prompt(record.tokens[:-3], (0,), (PIXELS[2],), in_answer=record.in_answer[:-3])
    said = generate(MODEL, parameters, [prompt], [], DecodingConfig(max_new_tokens=3))[0]
    answered = RenderedRecord(
        "test",
        np.append(record.tokens[:-3], said).astype(np.int32),
        record.supervised,
        record.in_answer,
        (0,),
        (PICTURE,),
    )
    batch = rows_of(((RECORDS[2], answered),), ((2,),))
    inputs = (batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index)
    best = jax.jit(MODEL.apply)({"params": parameters}, *inputs, batch.answer_mask)[0].argmax(axis=-1)
    end = len(RECORDS[2].tokens) + len(answered.tokens)
    assert said == best[end - 4 : end - 1].tolist()
