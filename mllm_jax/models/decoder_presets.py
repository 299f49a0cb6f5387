"""Named sizes of decoders: the published language models as values of the config, and the demo's own small one."""

from typing import Any

from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.experts import ExpertsConfig
from mllm_jax.models.layers.rotary_scaling import Llama3RotaryScaling


def _changed(config: DecoderConfig, **fields: Any) -> DecoderConfig:
    return DecoderConfig.model_validate(config.model_dump() | fields)


_LLAMA2_7B = DecoderConfig(
    vocab_size=32000,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_width=128,
    feed_forward_width=11008,
    max_positions=4096,
)

_LLAMA3_8B = DecoderConfig(
    vocab_size=128256,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_width=128,
    feed_forward_width=14336,
    rope_theta=500000.0,
    max_positions=8192,
)

_MISTRAL_7B = _changed(_LLAMA3_8B, vocab_size=32000, rope_theta=10000.0, sliding_window=4096, max_positions=32768)

_SMOLLM2_135M = DecoderConfig(
    vocab_size=49152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_width=64,
    feed_forward_width=1536,
    rope_theta=100000.0,
    tied_embeddings=True,
    max_positions=8192,
)

_QWEN2_5_0_5B = DecoderConfig(
    vocab_size=151936,
    width=896,
    layers=24,
    heads=14,
    kv_heads=2,
    head_width=64,
    feed_forward_width=4864,
    norm_epsilon=1e-6,
    rope_theta=1000000.0,
    tied_embeddings=True,
    attention_bias=True,
    attention_output_bias=False,
    max_positions=32768,
)

_QWEN3_0_6B = DecoderConfig(
    vocab_size=151936,
    width=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_width=128,
    feed_forward_width=3072,
    norm_epsilon=1e-6,
    query_key_norm=True,
    rope_theta=1000000.0,
    tied_embeddings=True,
    max_positions=40960,
)

_GEMMA_2B = DecoderConfig(
    vocab_size=256000,
    width=2048,
    layers=18,
    heads=8,
    kv_heads=1,
    head_width=256,
    feed_forward_width=16384,
    activation="gelu_tanh",
    norm="rms_one_plus",
    norm_epsilon=1e-6,
    scaled_embeddings=True,
    tied_embeddings=True,
    max_positions=8192,
)

_GEMMA2_2B = _changed(
    _GEMMA_2B,
    width=2304,
    layers=26,
    kv_heads=4,
    feed_forward_width=9216,
    post_norms=True,
    sliding_window=4096,
    sliding_layers=(True, False),
    score_width=256,
    attention_soft_cap=50.0,
    logit_soft_cap=30.0,
)

_GEMMA3_1B = _changed(
    _GEMMA2_2B,
    vocab_size=262144,
    width=1152,
    heads=4,
    kv_heads=1,
    feed_forward_width=6912,
    query_key_norm=True,
    rope_theta=1000000.0,
    sliding_rope_theta=10000.0,
    sliding_window=512,
    sliding_layers=(True, True, True, True, True, False),
    attention_soft_cap=None,
    logit_soft_cap=None,
    max_positions=32768,
)

_GPT2 = DecoderConfig(
    vocab_size=50257,
    width=768,
    layers=12,
    heads=12,
    kv_heads=12,
    head_width=64,
    feed_forward_width=3072,
    feed_forward="plain",
    activation="gelu_tanh",
    norm="layer",
    positions="learned",
    max_positions=1024,
    tied_embeddings=True,
    attention_bias=True,
    feed_forward_bias=True,
)

_OPT_125M = _changed(_GPT2, vocab_size=50272, activation="relu", position_offset=2, max_positions=2048)

DECODERS: dict[str, DecoderConfig] = {
    "tiny_llama": DecoderConfig(
        vocab_size=512,
        width=192,
        layers=4,
        heads=6,
        kv_heads=3,
        head_width=32,
        feed_forward_width=512,
        tied_embeddings=True,
        max_positions=1024,
    ),
    "smollm2_135m": _SMOLLM2_135M,
    "smollm2_360m": _changed(_SMOLLM2_135M, width=960, layers=32, heads=15, kv_heads=5, feed_forward_width=2560),
    "smollm2_1_7b": _changed(
        _SMOLLM2_135M, width=2048, layers=24, heads=32, kv_heads=32, feed_forward_width=8192, rope_theta=130000.0
    ),
    "llama2_7b": _LLAMA2_7B,
    "vicuna_7b": _LLAMA2_7B,
    "vicuna_13b": _changed(_LLAMA2_7B, width=5120, layers=40, heads=40, kv_heads=40, feed_forward_width=13824),
    "llama3_8b": _LLAMA3_8B,
    "llama3_1_8b": _changed(_LLAMA3_8B, rope_scaling=Llama3RotaryScaling(), max_positions=131072),
    "mistral_7b": _MISTRAL_7B,
    "qwen2_5_0_5b": _QWEN2_5_0_5B,
    "qwen2_5_1_5b": _changed(_QWEN2_5_0_5B, width=1536, layers=28, heads=12, head_width=128, feed_forward_width=8960),
    "qwen2_5_7b": _changed(
        _QWEN2_5_0_5B,
        vocab_size=152064,
        width=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        head_width=128,
        feed_forward_width=18944,
        tied_embeddings=False,
    ),
    "qwen3_0_6b": _QWEN3_0_6B,
    "qwen3_8b": _changed(_QWEN3_0_6B, width=4096, layers=36, heads=32, feed_forward_width=12288, tied_embeddings=False),
    "gemma_2b": _GEMMA_2B,
    "gemma2_2b": _GEMMA2_2B,
    "gemma3_1b": _GEMMA3_1B,
    "paligemma_3b": _changed(_GEMMA_2B, vocab_size=257216, attention="prefix"),
    "paligemma2_3b": _changed(_GEMMA2_2B, vocab_size=257216, attention="prefix"),
    "phi3_mini": _changed(
        _LLAMA2_7B, vocab_size=32064, width=3072, head_width=96, feed_forward_width=8192, sliding_window=2047
    ),
    "mixtral_8x7b": _changed(
        _MISTRAL_7B,
        rope_theta=1000000.0,
        sliding_window=None,
        experts=ExpertsConfig(count=8, chosen=2, width=14336),
    ),
    "qwen3_30b_a3b": _changed(
        _QWEN3_0_6B,
        width=2048,
        layers=48,
        heads=32,
        kv_heads=4,
        feed_forward_width=6144,
        tied_embeddings=False,
        experts=ExpertsConfig(count=128, chosen=8, width=768),
    ),
    "gpt2": _GPT2,
    "opt_125m": _OPT_125M,
    "opt_1_3b": _changed(
        _OPT_125M, width=2048, layers=24, heads=32, kv_heads=32, head_width=64, feed_forward_width=8192
    ),
    "opt_2_7b": _changed(
        _OPT_125M, width=2560, layers=32, heads=32, kv_heads=32, head_width=80, feed_forward_width=10240
    ),
    "opt_6_7b": _changed(
        _OPT_125M, width=4096, layers=32, heads=32, kv_heads=32, head_width=128, feed_forward_width=16384
    ),
}
"""Decoder language models."""
