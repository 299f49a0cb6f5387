"""Two stacks of blocks as one: layers, and blocks of another kind before some of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mllm_jax.models.layers.stack import REMAT_POLICIES, StackConfig, run_stack

Step = Callable[[Any, Any], tuple[Any, None]]
"""What `jax.lax.scan` repeats."""


class Interleaving(NamedTuple):
    """Where the blocks of a second stack stand among the layers of a first."""

    layers: int
    """Of the first stack."""
    every: int
    """Layers from one place to the next."""
    first: int
    """The layer before which the second stack's first block stands."""

    @property
    def places(self) -> range:
        """The layers before which the second stack's blocks stand."""
        return range(self.first, self.layers, self.every)


class Blocks(NamedTuple):
    """A stack to be interleaved with another."""

    block: type[nn.Module]
    arguments: dict[str, Any]
    name: str
    shared: tuple[Any, ...]
    """What every block is called with, after the carry and its number."""


def run_interleaved(
    parent: nn.Module, layers: Blocks, added: Blocks, places: Interleaving, config: StackConfig, carry: Any
) -> Any:
    """Runs a stack of layers with the blocks of a second stack before some of them; returns the last carry.

    Parameters are those of two stacks made by `run_stack`. Scanned, the program holds a block at most three times (what
    stands before the groups, in them and after them), whatever the depth.
    """
    if parent.is_initializing():
        for blocks, depth in ((added, len(places.places)), (layers, places.layers)):
            run = run_stack(parent, blocks.block, blocks.arguments, config, depth, depth, blocks.name)
            carry = run(carry, *blocks.shared)
        return carry
    if not config.scan:
        return _interleaved_unrolled(layers, added, places, config, carry)
    return _interleaved_scan(parent.variables["params"], layers, added, places, config, carry)


def _interleaved_unrolled(layers: Blocks, added: Blocks, places: Interleaving, config: StackConfig, carry: Any) -> Any:
    def run(blocks: Blocks, number: int, carry: Any) -> Any:
        block = blocks.block
        if config.remat != "none":
            block = nn.remat(block, policy=REMAT_POLICIES[config.remat])
        named = block(**blocks.arguments, name=f"{blocks.name}_{number}")
        return named(carry, jnp.int32(number), *blocks.shared)[0]

    for layer in range(places.layers):
        if layer in places.places:
            carry = run(added, places.places.index(layer), carry)
        carry = run(layers, layer, carry)
    return carry


def _interleaved_scan(
    parameters: Any, layers: Blocks, added: Blocks, places: Interleaving, config: StackConfig, carry: Any
) -> Any:
    def run(blocks: Blocks) -> Step:
        def one(carry: Any, numbered: tuple[Any, Any]) -> tuple[Any, None]:
            number, own = numbered
            module = blocks.block(**blocks.arguments, parent=None)
            return module.apply({"params": own}, carry, number, *blocks.shared)[0], None

        if config.remat == "none":
            return one
        return jax.checkpoint(one, policy=REMAT_POLICIES[config.remat], prevent_cse=False)

    def part(blocks: Blocks, start: int, stop: int) -> tuple[Any, Any]:
        return jnp.arange(start, stop), jax.tree.map(lambda leaf: leaf[start:stop], parameters[blocks.name])

    def group(carry: Any, both: tuple[Any, Any]) -> tuple[Any, None]:
        one, several = both
        return jax.lax.scan(run(layers), run(added)(carry, one)[0], several)

    whole = (places.layers - places.first) // places.every
    end = places.first + whole * places.every
    grouped = jax.tree.map(
        lambda leaf: leaf.reshape(whole, places.every, *leaf.shape[1:]), part(layers, places.first, end)
    )
    carry = _scan(run(layers), carry, part(layers, 0, places.first))
    carry = _scan(group, carry, (part(added, 0, whole), grouped))
    carry = _scan(run(added), carry, part(added, whole, len(places.places)))
    return _scan(run(layers), carry, part(layers, end, places.layers))


def _scan(step: Step, carry: Any, parts: Any) -> Any:
    if not jax.tree.leaves(parts)[0].shape[0]:
        return carry
    return jax.lax.scan(step, carry, parts)[0]
