"""Prefill and decode: two jitted programs, compiled once for each shape of a batch.

The prefill reads the prompts (images included) into a cache; a step then feeds the last token of every row and draws
the next. Rows are right-padded prompts of different lengths, each with its own place in the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from pydantic import Field

from data_pipelines.batch import Batch
from data_pipelines.config_class import Config
from mllm_jax.generation.prompts import Prompt, bucket, pad_prompts
from mllm_jax.generation.sampling import SamplingConfig, sample
from mllm_jax.models.connectors.choice import added_weights, instruction_tokens
from mllm_jax.models.decoder import Decoder
from mllm_jax.models.layers.cache import KVCache
from mllm_jax.models.layers.media import Media
from mllm_jax.models.layers.virtual_tokens import virtual_count
from mllm_jax.models.multimodal import Multimodal, slot_features
from mllm_jax.models.parameters import Parameters

LanguageModel = Multimodal | Decoder
"""What can generate; a bare decoder takes prompts without images."""


class DecodingConfig(Config):
    """How answers are generated."""

    max_new_tokens: int = Field(default=256, gt=0)
    """Longest answer in tokens."""
    rows: int = Field(default=8, gt=0)
    """Prompts answered at once."""
    pad_rows: bool = False
    """Fill a batch of fewer prompts up to `rows`, so that it runs the program of the full ones."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    """Seed of the draws; the same seed and the same prompts, batched alike, give the same tokens."""


def generate(
    model: LanguageModel,
    parameters: Parameters,
    prompts: Sequence[Prompt],
    stop_tokens: Sequence[int],
    config: DecodingConfig,
) -> list[list[int]]:
    """Continue every prompt until a stop token (not returned) or `max_new_tokens`.

    Prompts are answered `config.rows` at a time, those of similar length together; answers come in the prompts' order.

    Raises:
        ValueError: a prompt that is empty, or longer with its answer than the model's positions, or with images for a
            model without an encoder.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    rows = config.rows if config.pad_rows or len(prompts) > config.rows else bucket(len(prompts))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
    key = jax.random.key(config.seed)
    for start in range(0, len(order), config.rows):
        chosen = order[start : start + config.rows]
        group = [prompts[index] for index in chosen]
        finished = np.zeros(len(group), bool)
        for tokens in stream(model, parameters, group, config, jax.random.fold_in(key, start), rows):
            finished |= np.isin(tokens, stop_tokens)
            for place, index in enumerate(chosen):
                if not finished[place]:
                    answers[index].append(int(tokens[place]))
            if finished.all():
                break
    return answers


def stream(
    model: LanguageModel,
    parameters: Parameters,
    prompts: Sequence[Prompt],
    config: DecodingConfig,
    key: Key[Array, ""],
    rows: int = 1,
) -> Iterator[Int[np.ndarray, " B"]]:
    """Yield the next token of every prompt, up to `max_new_tokens` times; the caller stops when it has seen enough.

    The batch has `rows` rows, of which those without a prompt are empty.

    Raises:
        ValueError: as `generate`.
    """
    decoder, decoder_parameters = decoder_of(model, parameters)
    for prompt in prompts:
        check_prompt(model, parameters, prompt, config.max_new_tokens)
    batch, lengths = pad_prompts(prompts, *image_shape(model), rows, instructions_of(model))
    capacity = bucket(batch.tokens.shape[1] + config.max_new_tokens)
    tokens, cache, media, ahead = _prefill(model, parameters, batch, lengths, key, config.sampling, capacity)
    for index in range(1, config.max_new_tokens):
        # The next step is on its way before this one's tokens are waited for.
        step = np.int32(index)
        following, cache = _step(decoder, decoder_parameters, tokens, cache, media, ahead, key, step, config.sampling)
        yield np.asarray(tokens)[: len(prompts)]
        tokens = following
    yield np.asarray(tokens)[: len(prompts)]


def check_prompt(model: LanguageModel, parameters: Parameters, prompt: Prompt, max_new_tokens: int) -> None:
    """Check that the model can read the prompt, with the virtual tokens before it, and answer it.

    Raises:
        ValueError: as `generate`.
    """
    if not len(prompt.tokens):
        raise ValueError("found an empty prompt, expected at least one token to continue.")
    decoder = model.config if isinstance(model, Decoder) else model.config.decoder
    max_positions = decoder.max_positions
    virtual = virtual_count(decoder_of(model, parameters)[1])
    length = virtual + len(prompt.tokens)
    found = f"the prompt has {length} tokens" + (f" (with {virtual} virtual ones)" if virtual else "")
    if length + max_new_tokens > max_positions:
        raise ValueError(
            f"{found}, and {max_new_tokens} more may be generated, but the model was made for "
            f"{max_positions} positions: shorten the prompt or lower max_new_tokens."
        )
    switch = decoder.position_switch
    # The last token generated is not read.
    if switch is not None and length <= switch < length + max_new_tokens - 1:
        raise ValueError(
            f"{found}, and {max_new_tokens} more may be generated, but past {switch} tokens the "
            "model's rotary positions change (longrope), also of what was read before: lower max_new_tokens to "
            f"{switch - length + 1}, or give a longer prompt."
        )
    if prompt.images and isinstance(model, Decoder):
        raise ValueError("the prompt has an image, but this model is a language model without a vision encoder.")


def decoder_of(model: LanguageModel, parameters: Parameters) -> tuple[Decoder, Parameters]:
    """The language model inside a model, and its parameters."""
    if isinstance(model, Decoder):
        return model, parameters
    added = added_weights(model.config.connector)
    decoder = Decoder(model.config.decoder, added, dtype=model.dtype, param_dtype=model.param_dtype)
    return decoder, parameters["decoder"]


def image_shape(model: LanguageModel) -> tuple[int, tuple[int, int]]:
    """The features of an image slot, and its height and width in pixels."""
    return (0, (0, 0)) if isinstance(model, Decoder) else (slot_features(model.config), model.config.encoder.image_size)


def instructions_of(model: LanguageModel) -> int:
    """The longest instruction that the model's connector reads with an image; 0: it reads none."""
    return 0 if isinstance(model, Decoder) else instruction_tokens(model.config.connector)


def applied(model: LanguageModel, parameters: Parameters) -> Callable[..., Any]:
    """`model.apply` with its parameters."""
    return partial(model.apply, {"params": parameters})


def embed_prompts(
    model: LanguageModel, parameters: Parameters, batch: Batch
) -> tuple[Float[Array, "B T D"], Int[Array, "B T *axes"], Media | None]:
    """Embeddings of prompts with their images, their positions, and what the decoder's blocks read of the images."""
    apply = applied(model, parameters)
    if isinstance(model, Decoder):
        return apply(batch.tokens, method="embed"), batch.positions, None
    features = apply(batch.images, batch.image_mask, batch.instructions, method="encode_images")
    media = apply(features, batch.image_index, batch.segment_ids, method="media")
    positions = apply(batch.positions, batch.image_index, method="turning")
    return apply(batch.tokens, features, batch.image_index, method="embed"), positions, media


@partial(jax.jit, static_argnames=("model", "sampling", "capacity"))
def _prefill(
    model: LanguageModel,
    parameters: Parameters,
    batch: Batch,
    lengths: Int[Array, " B"],
    key: Key[Array, ""],
    sampling: SamplingConfig,
    capacity: int,
) -> tuple[Int[Array, " B"], KVCache, Media | None, Int[Array, " B"]]:
    """The first token after every prompt, a cache that holds the prompts, the images that the answers see, and how far
    the answers' places are ahead of their positions (an image may have more tokens than rows or columns)."""
    decoder, decoder_parameters = decoder_of(model, parameters)
    apply = applied(decoder, decoder_parameters)
    cache: Any = apply(len(lengths), capacity, method="start_cache")
    virtual = cache.lengths
    embeddings, positions, media = embed_prompts(model, parameters, batch)
    hidden, cache = apply(embeddings, batch.segment_ids, positions, cache, media, batch.answer_mask)
    if media is not None:
        media = media.after(jnp.take_along_axis(media.latest, (lengths - 1)[:, None], axis=1)[:, 0])
    last_position = positions[jnp.arange(len(lengths)), lengths - 1].reshape(len(lengths), -1).max(axis=-1)
    ahead = virtual + lengths - 1 - last_position
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return sample(apply(last, method="logits")[:, 0], jax.random.fold_in(key, 0), sampling), cache, media, ahead


@partial(jax.jit, static_argnames=("decoder", "sampling"), donate_argnames="cache")
def _step(
    decoder: Decoder,
    parameters: Parameters,
    tokens: Int[Array, " B"],
    cache: KVCache,
    media: Media | None,
    ahead: Int[Array, " B"],
    key: Key[Array, ""],
    index: Int[Array, ""],
    sampling: SamplingConfig,
) -> tuple[Int[Array, " B"], KVCache]:
    """The token that follows `tokens`, and the cache with `tokens` in it."""
    apply = applied(decoder, parameters)
    fed = tokens[:, None]
    positions = (cache.lengths - ahead)[:, None]
    hidden, cache = apply(
        apply(fed, method="embed"), jnp.ones_like(fed), positions, cache, media, jnp.ones_like(fed, bool)
    )
    return sample(apply(hidden, method="logits")[:, 0], jax.random.fold_in(key, index), sampling), cache
