"""Prefix attention: prompts are read in both directions and answers causally, packed and cached as alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models.decoder import Decoder, DecoderConfig, make_cache
from mllm_jax.models.layers.masks import cached_mask, packed_mask, prompt_blocks
from mllm_jax.models.layers.stack import StackConfig
from tests.support.parameters import drawn_parameters

CONFIG = DecoderConfig(
    **{"vocab_size": 50, "width": 36, "layers": 3, "heads": 6, "kv_heads": 3, "head_width": 4},
    feed_forward_width=52,
    attention="prefix",
    sliding_window=3,
    sliding_layers=(True, False),
)
TOKENS = np.random.default_rng(0).integers(0, 50, 12)
TURNS = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1], bool)
"""A prompt of four tokens, an answer of two, a prompt of four, an answer of two."""


@pytest.fixture(scope="module")
def parameters() -> dict:
    return drawn_parameters(CONFIG)


def run(module: Decoder, tokens, segment_ids, positions, answers):
    hidden, _ = module(module.embed(tokens), segment_ids, positions, answer_mask=answers)
    return module.logits(hidden)


@partial(jax.jit, static_argnums=0)
def logits(config: DecoderConfig, parameters, *arrays):
    return Decoder(config).apply({"params": parameters}, *arrays, method=run)


def alone(parameters, tokens=TOKENS, answers=TURNS, config: DecoderConfig = CONFIG) -> np.ndarray:
    length = len(tokens)
    arrays = jnp.asarray(tokens)[None], jnp.ones((1, length), jnp.int32), jnp.arange(length)[None]
    return np.asarray(logits(config, parameters, *arrays, jnp.asarray(answers)[None]))[0]


def seen(window: int | None = None) -> list[str]:
    """What each token of two turns sees, in a row that holds another segment before and padding behind."""
    segment_ids = jnp.asarray([[1, 1, *[2] * 9, 0, 0]])
    answers = jnp.asarray([[0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]], bool)
    mask = packed_mask(segment_ids, window, prompt_blocks(segment_ids, answers))[0, 0]
    return ["".join("x" if cell else "." for cell in row) for row in np.asarray(mask)]


def test_what_a_token_of_two_turns_sees() -> None:
    assert seen() == [
        "x............",
        "xx...........",
        "..xxx........",
        "..xxx........",
        "..xxx........",
        "..xxxx.......",
        "..xxxxx......",
        "..xxxxxxx....",
        "..xxxxxxx....",
        "..xxxxxxxx...",
        "..xxxxxxxxx..",
        "...........xx",
        "...........xx",
    ]


def test_a_window_bounds_what_answers_see_and_no_prompt() -> None:
    assert seen(window=2)[2:8] == [
        "..xxx........",
        "..xxx........",
        "..xxx........",
        "....xx.......",
        ".....xx......",
        "......xxx....",
    ]


def test_a_prompt_after_a_cache_sees_itself_and_all_that_the_cache_holds() -> None:
    segment_ids, answers = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 1]]), jnp.zeros((2, 4), bool).at[1, 3].set(True)
    slots = jnp.asarray([[2], [0]]) + jnp.arange(4)
    mask = np.asarray(cached_mask(slots, 7, None, prompt_blocks(segment_ids, answers))[:, 0])
    assert [["".join("x" if cell else "." for cell in row) for row in rows] for rows in mask] == [
        ["xxxxx..", "xxxxx..", "xxxxx..", "xxxxxx."],
        ["xxx....", "xxx....", "xxx....", "xxxx..."],
    ]


def test_a_packed_segment_sees_nothing_of_its_neighbours(parameters: dict) -> None:
    """The segments border on one another with prompts, with answers, and with a prompt that no answer follows."""
    cuts = (5, 8)
    pieces, marks = np.split(TOKENS, cuts), np.split(np.array([0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1], bool), cuts)
    arrays = (
        np.concatenate([TOKENS, np.zeros(4, int)]),
        np.repeat([1, 2, 3, 0], [5, 3, 4, 4]),
        np.concatenate([*(np.arange(len(piece)) for piece in pieces), np.zeros(4, int)]),
        np.concatenate([*marks, np.zeros(4, bool)]),
    )
    packed = np.asarray(logits(CONFIG, parameters, *(jnp.asarray(array)[None] for array in arrays)))[0]
    for piece, mark, start in zip(pieces, marks, (0, *cuts), strict=True):
        expected = alone(parameters, piece, mark)
        np.testing.assert_allclose(packed[start : start + len(piece)], expected, atol=1e-5)


def test_prompts_see_what_follows_in_them_and_answers_leak_nothing(parameters: dict) -> None:
    def changed_by(place: int) -> list[int]:
        other = TOKENS.copy()
        other[place] = (other[place] + 1) % 50
        difference = np.abs(alone(parameters, other) - alone(parameters)).max(axis=-1)
        return np.flatnonzero(difference > 1e-5).tolist()

    assert changed_by(3) == list(range(12))
    assert changed_by(5) == list(range(5, 12))
    assert changed_by(9) == list(range(6, 12))
    assert changed_by(11) == [11]


@pytest.mark.parametrize("scan", [True, False])
def test_cached_steps_equal_one_forward(scan: bool) -> None:
    """Rows of different lengths: one prompt quotes an answer, the other is all prefix; then token by token."""
    config = CONFIG.model_copy(update={"stack": StackConfig(scan=scan)})
    parameters = drawn_parameters(config)

    @jax.jit
    def step(cache, tokens, segment_ids, positions, answers):
        def read(module: Decoder):
            hidden, new = module(module.embed(tokens), segment_ids, positions, cache, answer_mask=answers)
            return module.logits(hidden), new

        return Decoder(config).apply({"params": parameters}, method=read)

    lengths, width = (10, 4), 10
    valid = np.arange(width) < np.array(lengths)[:, None]
    cache = make_cache(config, rows=2, length=13, dtype=jnp.float32)
    prefill = np.where(valid, TOKENS[:width], 0), valid.astype(int), np.arange(width) * valid, TURNS[:width] & valid
    first, cache = step(cache, *map(jnp.asarray, prefill))
    expected = alone(parameters, config=config)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(first[row, :length], expected[:length], atol=1e-5)
    for _ in range(2):
        places = cache.lengths[:, None]
        ones = jnp.ones((2, 1), jnp.int32)
        outputs, cache = step(cache, jnp.asarray(TOKENS)[places], ones, places, ones > 0)
        for row in range(2):
            np.testing.assert_allclose(outputs[row, 0], expected[int(places[row, 0])], atol=1e-5)


def test_padding_gives_finite_gradients_and_answers_must_be_named(parameters: dict) -> None:
    zeros = jnp.zeros((2, 6), jnp.int32)
    segment_ids = zeros.at[0, :3].set(1)

    def total(parameters):
        return logits(CONFIG, parameters, zeros, segment_ids, zeros, zeros.at[:, 1].set(1) > 0).sum()

    gradients = jax.jit(jax.grad(total))(parameters)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    with pytest.raises(ValueError, match="must be told where the answers stand"):
        Decoder(CONFIG).apply({"params": parameters}, jnp.zeros((2, 6, 36)), segment_ids, zeros)
