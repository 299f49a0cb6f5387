"""Self-attention by Pallas' splash attention for TPUs: blocks of scores in fast memory, none of them in HBM."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import (
    DEFAULT_MASK_VALUE,
    BlockSizes,
    SegmentIds,
    SplashAttentionKernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from mllm_jax.models.layers.axes import ROWS, BatchAxes
from mllm_jax.models.layers.masks import PackedMask
from mllm_jax.models.layers.saved import ATTENTION

LANES = 128
"""Blocks are whole multiples of it."""

PLACE_BITS = 16
"""Bits of one of two places of tokens that share a number."""

FUSED_BLOCKS = 8
"""Up to so many blocks of keys one kernel makes all gradients; it keeps a gradient of the queries for each of them."""


class Operands(NamedTuple):
    """What a device's kernels read, or how it is split; tokens are padded to whole blocks."""

    query: Any
    """[B, H, T, C]; scaled."""
    key: Any
    """[B, K, S, C]."""
    value: Any
    query_segments: Any
    """i32[B, T]; None: all are one."""
    key_segments: Any
    """i32[B, S]."""
    seen: Any
    """i32[B, T]; the place of the last key that each query sees, or with windows those of the first and the last in the
    halves of one number; None: all keys are seen."""
    places: Any
    """i32[T]; of the queries in the whole row."""
    window: Any
    """i32[]; of a mask that has windows."""


def _axes(rows: str, tokens: str | None) -> Operands:
    """Logical names of the operands' axes: every device attends for its own rows, heads and queries."""
    return Operands(
        query=(rows, "heads_activation", tokens, None),
        key=(rows, "kv_heads_activation", None, None),
        value=(rows, "kv_heads_activation", None, None),
        query_segments=(rows, tokens),
        key_segments=(rows, None),
        seen=(rows, tokens),
        places=(tokens,),
        window=(),
    )


class Plan(NamedTuple):
    """What is known of an attention before it runs."""

    block: int
    """Tokens."""
    split: bool
    """Whether a row's queries are split over devices."""
    bidirectional: bool
    """Whether queries may see keys behind them."""
    soft_cap: float | None
    interpret: bool


def attend_splash(
    query: Float[Array, "B T H C"],
    key: Float[Array, "B T K C"],
    value: Float[Array, "B T K C"],
    mask: PackedMask | None,
    soft_cap: float | None,
    block_tokens: int,
    interpret: bool,
    batch_axes: BatchAxes = ROWS,
) -> Float[Array, "B T H C"]:
    """Attention of queries that are scaled already.

    Args:
        query, key, value: heads, with positions already in them; H a multiple of K.
        mask: what each query sees; None: everything.
        soft_cap: of the scores.
        block_tokens: about as many tokens are a block.
        interpret: compute without a TPU.
        batch_axes: of queries, keys and values.

    Raises:
        ValueError: windows in rows so long that two places do not fit into one number.
    """
    mesh = jax.sharding.get_abstract_mesh()
    tokens = query.shape[1]
    ways = 1 if mesh.empty else _ways(mesh, _mesh_axes(batch_axes[1:])[0])
    block, padded = block_layout(-(-tokens // ways), block_tokens)
    operands = _operands(query, key, value, mask, padded * ways)
    plan = Plan(block, ways > 1, mask is None or mask.blocks is not None, soft_cap, interpret)
    attend: Callable[[Operands], Array] = partial(_attend_shard, plan)
    if not mesh.empty:
        specs = Operands(*(_spec(mesh, *each) for each in zip(_axes(*batch_axes), operands, strict=True)))
        attend = jax.shard_map(attend, mesh=mesh, in_specs=(specs,), out_specs=specs.query, check_vma=False)
    return jnp.swapaxes(attend(operands)[:, :, :tokens], 1, 2)


def block_layout(tokens: int, block_tokens: int) -> tuple[int, int]:
    """Tokens of a block and of all of them: about `block_tokens`, all equal, with as little padding as that allows."""
    count = max(round(tokens / block_tokens), 1)
    block = -(-tokens // (count * LANES)) * LANES
    return block, count * block


def _operands(query: Array, key: Array, value: Array, mask: PackedMask | None, padded: int) -> Operands:
    rows, tokens = query.shape[:2]
    places = jnp.arange(padded)

    def filled(array: Array, axis: int, fill: int = 0) -> Array:
        widths = [(0, padded - tokens if at == axis else 0) for at in range(array.ndim)]
        return jnp.pad(array, widths, constant_values=fill)

    query, key, value = (filled(jnp.swapaxes(each, 1, 2), 2) for each in (query, key, value))
    segments = seen = window = None
    if mask is not None:
        segments, window, seen = filled(mask.segment_ids, 1, -1), mask.window, _seen(mask)
        # Padding sees itself, so that no softmax is empty.
        seen = jnp.where(places < tokens, filled(seen, 1), places if window is None else _both(places, places))
    elif padded > tokens:
        segments = jnp.broadcast_to((places < tokens).astype(jnp.int32), (rows, padded))
    return Operands(query, key, value, segments, segments, seen, places, window)


def _seen(mask: PackedMask) -> Int[Array, "B T"]:
    if mask.window is None:
        return mask.last_seen()
    tokens = mask.segment_ids.shape[1]
    if tokens >= 2 ** (PLACE_BITS - 1):
        raise ValueError(
            f"attention.kernel splash with a sliding window takes rows of up to {2 ** (PLACE_BITS - 1) - 1} tokens, "
            f"found {tokens}; shorten the rows, or set kernel to xla"
        )
    return _both(mask.first_seen(), mask.last_seen())


def _both(first: Array, last: Array) -> Array:
    return (first << PLACE_BITS) | last


def _sees_up_to(seen: Array, keys: Array) -> Array:
    return seen >= keys


def _sees_between(seen: Array, keys: Array) -> Array:
    return (keys >= seen >> PLACE_BITS) & (keys <= seen & (2**PLACE_BITS - 1))


def _mesh_axes(names: tuple[str | None, ...]) -> tuple[Any, ...]:
    """The mesh axes that split an array, by the logical names of its axes and the rules in force."""
    return tuple(nn.logical_to_mesh_axes(names) or (None,) * len(names))


def _ways(mesh: Any, axes: Any) -> int:
    """Into how many parts mesh axes split."""
    return int(np.prod([mesh.shape[axis] for axis in _named(axes)], dtype=int))


def _named(axes: Any) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _spec(mesh: Any, names: tuple[str | None, ...], array: Array | None) -> PartitionSpec | None:
    """How an array is split by the names of its axes; each by as many of its mesh axes as divide it (few images, one
    row of a prompt)."""
    if array is None:
        return None

    def dividing(axes: tuple[str, ...], length: int) -> tuple[str, ...]:
        return axes if length % _ways(mesh, axes) == 0 else dividing(axes[:-1], length)

    lengths = zip(_mesh_axes(names), array.shape, strict=True)
    return PartitionSpec(*(dividing(_named(axes), length) or None for axes, length in lengths))


def _attend_shard(plan: Plan, given: Operands) -> Float[Array, "B H T C"]:
    """Attention of the rows, heads and queries of one device."""
    count, keys = given.query.shape[2] // plan.block, given.key.shape[2] // plan.block
    forward, backward = _block_tables(plan, given, count, keys)
    fused = keys <= FUSED_BLOCKS
    block, block_of_queries = plan.block, None if fused else plan.block
    sizes = BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block_of_queries,
        block_kv_dq=block_of_queries,
        use_fused_bwd_kernel=fused,
    )

    def of_row(query: Array, key: Array, value: Array, segments: SegmentIds | None, seen: Any) -> Any:
        mask_forward, mask_backward = (
            MaskInfo(table, None, active, None, seen) for table, active in (forward, backward)
        )
        kernel = SplashAttentionKernel(
            mask_forward,
            None if fused else mask_forward,
            mask_backward,
            is_mqa=False,
            block_sizes=sizes,
            save_residuals=False,
            mask_value=DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=plan.soft_cap,
            residual_checkpoint_name=ATTENTION,
            mask_function=None if seen is None else _sees_up_to if given.window is None else _sees_between,
            interpret=plan.interpret,
        )
        return kernel(query, key, value, segments)

    segments = None if given.query_segments is None else SegmentIds(given.query_segments, given.key_segments)
    return jax.vmap(of_row)(given.query, given.key, given.value, segments, given.seen)


Tables = tuple[Any, Any]
"""Which block is read next, and which are computed at all: [1, blocks of queries, blocks of keys]; or None twice."""


def _block_tables(plan: Plan, given: Operands, count: int, keys: int) -> tuple[Tables, Tables]:
    """Tables of the forward kernel, which reads keys, and of the backward one, which reads queries."""
    if given.seen is None or plan.bidirectional:
        return (None, None), (None, None)
    # Constants where nothing depends on the device or the layer.
    module: Any = jnp if plan.split or given.window is not None else np
    start = module.arange(count)[:, None] * plan.block + (given.places[0] if plan.split else 0)
    block_of_key = module.arange(keys)[None]
    last = (start + plan.block - 1) // plan.block
    first = 0 * last if given.window is None else module.maximum(start - given.window + 1, 0) // plan.block
    active = (block_of_key >= first) & (block_of_key <= last)
    first_query = module.argmax(active, axis=0)
    last_query = count - 1 - module.argmax(active[::-1], axis=0)
    # A block that is skipped stands for one that is there already, or comes next, so that nothing is read for it.
    next_key = module.clip(block_of_key, first, last)
    next_query = module.clip(module.arange(count)[:, None], first_query, last_query)
    stored = [
        jnp.asarray(each[None], jnp.int8 if max(count, keys) < 128 else jnp.int32)
        for each in (next_key, next_query, active)
    ]
    return (stored[0], stored[2]), (stored[1], stored[2])
