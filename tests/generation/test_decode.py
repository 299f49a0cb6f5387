"""Decoding with a cache gives the tokens that reading everything again for every token gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.generation import decode
from mllm_jax.generation.decode import DecodingConfig, generate
from mllm_jax.generation.prompts import Prompt, bucket, pad_prompts
from mllm_jax.generation.sampling import SamplingConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.parameters import Parameters, make_model
from mllm_jax.models.vit import ViTConfig
from tests.support.parameters import drawn_parameters

CONFIG = MultimodalConfig(
    encoder=ViTConfig(image_size=(16, 12), patch_size=4, width=24, layers=2, heads=3, feed_forward_width=40),
    decoder=DecoderConfig(
        vocab_size=300, width=36, layers=2, heads=9, kv_heads=3, head_width=4, feed_forward_width=52, max_positions=128
    ),
)


MODEL = make_model(CONFIG)
ALL_AT_ONCE = DecodingConfig(max_new_tokens=6, rows=4)


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return drawn_parameters(CONFIG)


def drawn_prompt(seed: int, length: int, images: int = 0) -> Prompt:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 300, length).astype(np.int32)
    starts = tuple(1 + 13 * image for image in range(images))
    pixels = tuple(generator.integers(0, 256, (16, 12, 3), dtype=np.uint8) for _ in range(images))
    return Prompt(tokens, starts, pixels)


PROMPTS = [drawn_prompt(0, 35, images=2), drawn_prompt(1, 5), drawn_prompt(2, 40, images=1), drawn_prompt(3, 20)]


@pytest.fixture(scope="module")
def answers(parameters: Parameters) -> list[list[int]]:
    return generate(MODEL, parameters, PROMPTS, [], ALL_AT_ONCE)


def test_every_token_is_the_most_probable_after_all_before_it(parameters: Parameters, answers: list[list[int]]) -> None:
    answered = [
        Prompt(np.append(prompt.tokens, answer).astype(np.int32), prompt.image_starts, prompt.images)
        for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]
    batch, lengths = pad_prompts(answered, image_tokens(CONFIG), CONFIG.encoder.image_size, rows=4)
    inputs = (batch.tokens, batch.segment_ids, batch.positions, batch.images, batch.image_mask, batch.image_index)
    logits = jax.jit(MODEL.apply)({"params": parameters}, *map(jnp.asarray, inputs))
    best = np.asarray(logits.argmax(axis=-1))
    assert answers == [best[row, length - 7 : length - 1].tolist() for row, length in enumerate(lengths)]


def test_answers_do_not_depend_on_what_shares_their_batch(parameters: Parameters, answers: list[list[int]]) -> None:
    assert generate(MODEL, parameters, PROMPTS, [], DecodingConfig(max_new_tokens=6, rows=2)) == answers


def test_an_answer_ends_before_its_stop_token(parameters: Parameters, answers: list[list[int]]) -> None:
    stop = answers[0][2]
    stopped = generate(MODEL, parameters, PROMPTS, [stop], ALL_AT_ONCE)
    assert stopped == [answer[: answer.index(stop)] if stop in answer else answer for answer in answers]


def test_one_program_serves_prompts_of_many_lengths(parameters: Parameters) -> None:
    config = DecodingConfig(max_new_tokens=4)
    generate(MODEL, parameters, [drawn_prompt(0, 33)], [], config)
    programs = decode._prefill._cache_size(), decode._step._cache_size()
    for length in range(33, 41):
        generate(MODEL, parameters, [drawn_prompt(length, length)], [], config)
    assert (decode._prefill._cache_size(), decode._step._cache_size()) == programs


def test_sampling_repeats_under_one_seed(parameters: Parameters) -> None:
    def answers(seed: int) -> list[list[int]]:
        config = DecodingConfig(max_new_tokens=4, sampling=SamplingConfig(temperature=1.0, top_k=50), seed=seed)
        return generate(MODEL, parameters, PROMPTS[:2], [], config)

    assert answers(0) == answers(0)
    assert answers(0) != answers(1)


def test_a_decoder_alone_answers_text_and_refuses_images(parameters: Parameters) -> None:
    decoder = make_model(CONFIG.decoder)
    config = DecodingConfig(max_new_tokens=3)
    alone = generate(decoder, parameters["decoder"], [PROMPTS[1]], [], config)
    assert alone == generate(MODEL, parameters, [PROMPTS[1]], [], config)
    with pytest.raises(ValueError, match="without a vision encoder"):
        generate(decoder, parameters["decoder"], [PROMPTS[0]], [], config)


def test_a_prompt_that_does_not_fit_is_refused(parameters: Parameters) -> None:
    with pytest.raises(ValueError, match=r"120 tokens, and 9 more .* 128 positions"):
        generate(MODEL, parameters, [drawn_prompt(0, 120)], [], DecodingConfig(max_new_tokens=9))


@pytest.mark.parametrize(("size", "rounded"), [(1, 1), (3, 3), (8, 8), (9, 12), (17, 24), (33, 48), (606, 768)])
def test_sizes_are_rounded_up_to_two_values_an_octave(size: int, rounded: int) -> None:
    assert bucket(size) == rounded


def test_a_short_last_batch_runs_the_program_of_the_full_ones(parameters: Parameters, answers: list[list[int]]) -> None:
    programs = decode._prefill._cache_size(), decode._step._cache_size()
    padded = DecodingConfig(max_new_tokens=6, rows=4, pad_rows=True)
    assert generate(MODEL, parameters, PROMPTS[:1], [], padded) == answers[:1]
    assert (decode._prefill._cache_size(), decode._step._cache_size()) == programs
