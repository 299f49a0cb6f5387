"""How far the logits of a model computed in bfloat16, from weights in bfloat16, are from those in float32."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig, image_tokens
from mllm_jax.models.parameters import init_parameters, make_model
from mllm_jax.models.presets import DECODERS, ENCODERS

TEXT = 64
"""Tokens of text in a row."""
OPTIMISED = {"xla_backend_optimization_level": "3"}
"""These models compute longer than they compile, unlike the tests, whose flags are otherwise in force."""


class Drift(NamedTuple):
    largest: float
    mean: float
    agreement: float
    """Share of the tokens for which both formats have the same largest logit."""
    spread: float
    """Standard deviation of the logits in float32."""


def decoder_drift(preset: str = "smollm2_135m") -> Drift:
    """Of a decoder alone."""
    config = DECODERS[preset]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, TEXT), np.int32)
    positions = np.arange(TEXT, dtype=np.int32)[None]

    def run(module: Any, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        hidden, _ = module(module.embed(tokens), segment_ids, positions)
        return module.logits(hidden)

    return _drift(config, (tokens, np.ones_like(tokens), positions), method=run)


def multimodal_drift(encoder: str = "dinov2_small", decoder: str = "smollm2_135m") -> Drift:
    """Of a model that reads one image of 224 x 224 pixels and text after it."""
    tower = ENCODERS[encoder].model_copy(update={"image_size": (224, 224)})
    config = MultimodalConfig(encoder=tower, decoder=DECODERS[decoder])
    generator, count = np.random.default_rng(0), image_tokens(config)
    length = count + TEXT
    tokens = generator.integers(0, config.decoder.vocab_size, (1, length), np.int32)
    index = np.where(np.arange(length) < count, np.arange(length), -1).astype(np.int32)[None]
    images = generator.integers(0, 256, (1, 1, *tower.image_size, 3), np.uint8)
    positions = np.arange(length, dtype=np.int32)[None]
    return _drift(config, (tokens, np.ones_like(tokens), positions, images, np.ones((1, 1), bool), index))


def _drift(config: DecoderConfig | MultimodalConfig, arrays: tuple[np.ndarray, ...], **options: Any) -> Drift:
    parameters = jax.jit(lambda: init_parameters(config, jax.random.key(0)), compiler_options=OPTIMISED)()
    logits = []
    for dtype in (jnp.float32, jnp.bfloat16):
        apply = partial(make_model(config, dtype, dtype).apply, **options)
        variables = {"params": jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), parameters)}
        compiled = jax.jit(apply, compiler_options=OPTIMISED)
        logits.append(np.asarray(compiled(variables, *map(jnp.asarray, arrays)), np.float32))
    wide, rounded = logits
    difference = np.abs(wide - rounded)
    agreement = float((wide.argmax(-1) == rounded.argmax(-1)).mean())
    return Drift(float(difference.max()), float(difference.mean()), agreement, float(wide.std()))
