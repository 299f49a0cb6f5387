"""A stack of equal blocks: scanned or unrolled, recomputed in the backward pass or not."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_pipelines.config_class import Config
from mllm_jax.models.layers.attention_kernels import AttentionConfig
from mllm_jax.models.layers.experts import ROUTING
from mllm_jax.models.layers.low_rank import DROPOUT
from mllm_jax.models.layers.saved import ATTENTION, KEY, QUERY, VALUE

RematName = Literal["none", "full", "dots", "save_attention", "offload_to_host"]
Run = Callable[..., Any]
"""`(carry, *shared) -> carry`."""


class StackConfig(Config):
    """How a stack of blocks is compiled; it changes neither parameters nor results."""

    scan: bool = True
    """Compile one block and loop over it; compile time then does not grow with depth."""
    remat: RematName = "none"
    """What of a block the backward pass does not find in memory and computes again. none: nothing. full: all of it.
    dots: all but matrix products and what attention reads. save_attention: all but queries, keys, values and what
    attention reads. offload_to_host: likewise, but queries, keys and values wait in the host's memory."""
    attention: AttentionConfig = AttentionConfig()


_POLICIES = jax.checkpoint_policies

REMAT_POLICIES: dict[RematName, Callable[..., Any]] = {
    "full": _POLICIES.nothing_saveable,
    "dots": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(ATTENTION)
    ),
    "save_attention": _POLICIES.save_only_these_names(QUERY, KEY, VALUE, ATTENTION),
    "offload_to_host": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[ATTENTION],
        names_which_can_be_offloaded=[QUERY, KEY, VALUE],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def run_stack(
    parent: nn.Module,
    block: type[nn.Module],
    arguments: dict[str, Any],
    config: StackConfig,
    used: int,
    depth: int | None = None,
    name: str = "blocks",
) -> Run:
    """A function that runs the first `used` of `depth` blocks; None: of `parent.config.layers`.

    A block is called `(carry, layer, *shared) -> (carry, None)`. The parameters of all blocks exist, so that weights
    survive a round trip whole, but the blocks after `used` are never executed: their slices are not read.
    Must be called in a compact method; makes `blocks` (stacked, scanned) or `blocks_0`, `blocks_1`, ..., under `name`.
    """
    depth = parent.config.layers if depth is None else depth
    length = depth if parent.is_initializing() else used
    if config.remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan)
    if config.scan and length:
        return _scanned(block, arguments, length, depth, name)
    return _unrolled(block, arguments, length, name)


def _unrolled(block: type[nn.Module], arguments: dict[str, Any], length: int, name: str) -> Run:
    def run(carry, *shared):
        for layer in range(length):
            carry, _ = block(**arguments, name=f"{name}_{layer}")(carry, jnp.int32(layer), *shared)
        return carry

    return run


def _scanned(block: type[nn.Module], arguments: dict[str, Any], length: int, depth: int, name: str) -> Run:
    def run(carry, *shared):
        stack = nn.scan(
            block,
            variable_axes={"params": 0, ROUTING: 0},
            split_rngs={"params": True, DROPOUT: True},
            in_axes=(0, *(nn.broadcast for _ in shared)),
            length=length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if length < depth:
            stack = nn.map_variables(stack, "params", trans_in_fn=partial(_first_layers, length=length))
        carry, _ = stack(**arguments, name=name)(carry, jnp.arange(length), *shared)
        return carry

    return run


def _first_layers(parameters: Any, length: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:length], parameters)
