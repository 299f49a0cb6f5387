"""Dot-product attention behind one function, and the kernel that does it, chosen by platform and by what is masked."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float
from pydantic import Field

from data_pipelines.config_class import Config
from mllm_jax.models.layers.axes import ROWS, BatchAxes
from mllm_jax.models.layers.masks import PackedMask
from mllm_jax.models.layers.saved import ATTENTION

KernelName = Literal["xla", "splash", "cudnn"]


class AttentionConfig(Config):
    """By what self-attention is computed; it changes results by rounding alone."""

    kernel: Literal["auto", KernelName] = "auto"
    """xla: scores of all pairs exist in memory. splash: a Pallas kernel that never holds them, for TPUs (interpreted
    elsewhere, which is slow and for tests). cudnn: flash attention on NVIDIA GPUs. auto: by the platform, splash on a
    TPU, cudnn on a GPU where it can express the mask, xla on a CPU. What reads a cache, learned prefixes, virtual
    tokens or another sequence is xla in any case. What was chosen is said when a stage begins."""
    block_tokens: int = Field(default=512, gt=0, multiple_of=128)
    """Queries, and keys, of a block of splash; blocks are evened out over the tokens that there are. Larger ones use
    the matrix unit better, smaller ones skip more of what a mask hides."""


XLA = AttentionConfig(kernel="xla")


class Choice(NamedTuple):
    """A kernel, and why."""

    kernel: KernelName
    reason: str


class Heads(NamedTuple):
    """What a choice depends on."""

    width: int
    dtype: Any
    """In which they are computed."""
    soft_capped: bool = False


def platform() -> str:
    """That of the mesh in use, whose devices need not be here, or of this process: `cpu`, `tpu` or `gpu`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.default_backend() if device is None else device.platform
    return "gpu" if found in ("cuda", "rocm") else found


def choose_kernel(config: AttentionConfig, heads: Heads, on: str) -> Choice:
    """The kernel of self-attention over packed rows or whole images.

    Args:
        config: what a run file says.
        heads: of queries, keys and values.
        on: the platform, as `platform` names it.

    Raises:
        ValueError: the kernel that is asked for cannot do it.
    """
    if config.kernel == "xla":
        return Choice("xla", "as configured")
    if config.kernel == "splash":
        return Choice("splash", "as configured" if on == "tpu" else f"as configured; interpreted on {on}, slowly")
    problem = _cudnn_problem(heads, on)
    if config.kernel == "cudnn":
        if problem is not None:
            raise ValueError(f"attention.kernel cudnn: {problem}; take auto or xla")
        return Choice("cudnn", "as configured")
    if on == "tpu":
        return Choice("splash", "on a TPU")
    if on == "gpu":
        return Choice("cudnn", "on a GPU") if problem is None else Choice("xla", f"cudnn: {problem}")
    return Choice("xla", f"on a {on.upper()}")


def _cudnn_problem(heads: Heads, on: str) -> str | None:
    """What keeps cuDNN's flash attention from it; None: nothing."""
    if on != "gpu":
        return f"the devices are no GPUs, but {on}"
    if heads.soft_capped:
        return "it has no soft cap"
    if heads.width > 128 or heads.width % 8:
        return f"heads are {heads.width} wide, not a multiple of 8 up to 128"
    if jnp.dtype(heads.dtype).itemsize != 2:
        return f"it computes in bfloat16, not in {jnp.dtype(heads.dtype).name}"
    return None


def attend(
    query: Float[Array, "B T H C"],
    key: Float[Array, "B S K C"],
    value: Float[Array, "B S K C"],
    mask: PackedMask | Bool[Array, "B 1 T S"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    config: AttentionConfig = XLA,
    batch_axes: BatchAxes = ROWS,
) -> Float[Array, "B T H C"]:
    """Scaled dot-product attention; softmax in float32, H a multiple of K. The one place that calls a kernel.

    Args:
        query, key, value: heads, with positions already in them.
        mask: what each query may see: told by token, or all pairs (which only xla takes); None: everything.
        scale: factor of the dot products; None: 1/sqrt(C).
        soft_cap: scores are kept between this and its negative by a tanh; None: as they are.
        config: which kernel computes it.
        batch_axes: of queries, keys and values.
    """
    if not isinstance(mask, PackedMask) and (mask is not None or query.shape[1] != key.shape[1]):
        return checkpoint_name(_attend_xla(query, key, value, mask, scale, soft_cap), ATTENTION)
    kernel = choose_kernel(config, Heads(query.shape[-1], query.dtype, soft_cap is not None), platform()).kernel
    if kernel == "splash":
        from mllm_jax.models.layers.splash import attend_splash

        scaled = query * jnp.asarray(scale or 1 / math.sqrt(query.shape[-1]), query.dtype)
        interpret = platform() != "tpu"
        return attend_splash(scaled, key, value, mask, soft_cap, config.block_tokens, interpret, batch_axes)
    if kernel == "cudnn":
        return checkpoint_name(_attend_cudnn(query, key, value, mask, scale), ATTENTION)
    dense = None if mask is None else mask.dense()
    return checkpoint_name(_attend_xla(query, key, value, dense, scale, soft_cap), ATTENTION)


def _attend_xla(
    query: Float[Array, "B T H C"],
    key: Float[Array, "B S K C"],
    value: Float[Array, "B S K C"],
    mask: Bool[Array, "B 1 T S"] | None,
    scale: float | None,
    soft_cap: float | None,
) -> Float[Array, "B T H C"]:
    if soft_cap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation="xla")
    rows, tokens, heads, head_width = query.shape
    grouped = query.reshape(rows, tokens, key.shape[2], -1, head_width)
    scores = jnp.einsum("btkgc,bskc->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = soft_capped(scores * (scale or 1 / math.sqrt(head_width)), soft_cap)
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskc->btkgc", weights, value).reshape(rows, tokens, heads, head_width)


def _attend_cudnn(
    query: Float[Array, "B T H C"],
    key: Float[Array, "B S K C"],
    value: Float[Array, "B S K C"],
    mask: PackedMask | None,
    scale: float | None,
) -> Float[Array, "B T H C"]:
    dense = None if mask is None else mask.dense()
    return jax.nn.dot_product_attention(query, key, value, mask=dense, scale=scale, implementation="cudnn")


def soft_capped(values: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """`cap * tanh(values / cap)`: values bent to stay within the cap (https://arxiv.org/abs/2408.00118)."""
    return cap * jnp.tanh(values / cap)
