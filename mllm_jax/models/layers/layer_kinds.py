"""What differs between the layers of one decoder: how far they see and how they turn their heads.

A stack has few kinds of layers. Masks and angles are made once a kind and stacked; a layer takes those of its kind, so
that one compiled block serves all layers.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mllm_jax.models.layers.cache import KVCache, next_slots
from mllm_jax.models.layers.grid_positions import along_sections
from mllm_jax.models.layers.masks import PackedMask, cached_mask, packed_mask, virtual_mask
from mllm_jax.models.layers.prefix import Prefix, Prefixes
from mllm_jax.models.layers.rotary import rotary_angles, rotary_frequencies, segment_lengths
from mllm_jax.models.layers.rotary_scaling import RotaryScaling
from mllm_jax.models.layers.virtual_tokens import KeysAndValues

Angles = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]


class Rotation(NamedTuple):
    """How heads are turned."""

    width: int
    """Dimensions of a head that are turned."""
    theta: float
    scaling: RotaryScaling | None
    sections: tuple[int, ...] | None = None
    """Pairs of dimensions that turn by the position in time, in rows and in columns; None: all turn by the place."""


class LayerKind(NamedTuple):
    window: int | None
    """Tokens that a query sees, itself included; None: all before it."""
    rotation: Rotation | None
    """None: heads are not turned."""


class Views(NamedTuple):
    """Masks and angles of every kind of layer (axis `kinds`)."""

    kind_of_layer: Int[Array, " L"]
    masks: PackedMask | Bool[Array, "kinds B 1 T S"]
    """Told by token where a kernel takes that, with the windows of all kinds; or all pairs."""
    cosines: Float[Array, "kinds B T half"] | None
    """None: no layer turns its heads."""
    sines: Float[Array, "kinds B T half"] | None
    segment_ids: Int[Array, "B T"]

    prefixes: Prefixes | None = None
    """What queries read besides the tokens; None: nothing."""
    at_image: Bool[Array, "B T"] | None = None
    """Tokens that have weights of their own; None: there are none."""
    virtual: KeysAndValues | None = None
    """What stands before every segment and is in no cache, as the first keys of the masks; None: nothing."""

    def prefix_of(self, layer: Int[Array, ""]) -> Prefix | None:
        """What the queries of one layer read besides the tokens."""
        return None if self.prefixes is None else self.prefixes.of(layer, self.segment_ids.shape[0])

    def virtual_of(self, layer: Int[Array, ""]) -> KeysAndValues | None:
        """The virtual tokens of one layer."""
        return None if self.virtual is None else self.virtual.of(layer)

    @property
    def kinds(self) -> int:
        """How many kinds of layers there are."""
        per_kind = (self.cosines, self.masks.window if isinstance(self.masks, PackedMask) else self.masks)
        return max((each.shape[0] for each in per_kind if each is not None), default=1)

    def of(self, layer: Int[Array, ""]) -> tuple[PackedMask | Bool[Array, "B 1 T S"], Angles | None]:
        """The mask and the angles of one layer."""
        kind = 0 if self.kinds == 1 else self.kind_of_layer[layer]
        mask = self.masks.of_kind(kind) if isinstance(self.masks, PackedMask) else self.masks[kind]
        if self.cosines is None or self.sines is None:
            return mask, None
        return mask, (self.cosines[kind], self.sines[kind])


def make_views(
    kinds: tuple[LayerKind, ...],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T *axes"],
    cache: KVCache | None,
    blocks: Int[Array, "B T"] | None = None,
    virtual: KeysAndValues | None = None,
    dense: bool = True,
) -> Views:
    """Views of packed rows (no cache) or of tokens that follow those of a cache; `kinds` has one entry a layer.

    `blocks` are those of `masks.prompt_blocks`; None: attention is causal. `virtual` stands before every segment of
    packed rows; a cache has it already. Masks are all pairs if `dense`, or if they are not of packed tokens alone.
    """
    distinct = list(dict.fromkeys(kinds))
    masks = _masks([kind.window for kind in distinct], segment_ids, cache, blocks, virtual, dense)
    width = max((kind.rotation.width for kind in distinct if kind.rotation is not None), default=0)
    angles = [_angles(kind.rotation, width, segment_ids, positions) for kind in distinct]
    return Views(
        kind_of_layer=jnp.asarray([distinct.index(kind) for kind in kinds]),
        masks=masks,
        cosines=jnp.stack([cosine for cosine, _ in angles]) if width else None,
        sines=jnp.stack([sine for _, sine in angles]) if width else None,
        segment_ids=segment_ids,
        virtual=virtual,
    )


def _masks(
    windows: list[int | None],
    segment_ids: Int[Array, "B T"],
    cache: KVCache | None,
    blocks: Int[Array, "B T"] | None,
    virtual: KeysAndValues | None,
    dense: bool,
) -> PackedMask | Bool[Array, "kinds B 1 T S"]:
    if cache is not None:
        slots = next_slots(cache, segment_ids.shape[1])
        return jnp.stack([cached_mask(slots, cache.capacity, window, blocks) for window in windows])
    if not dense and virtual is None:
        return PackedMask(segment_ids, blocks, _windows(windows, segment_ids.shape[1]))
    packed = jnp.stack([packed_mask(segment_ids, window, blocks) for window in windows])
    if virtual is None:
        return packed
    before = jnp.stack([virtual_mask(segment_ids, virtual.length, window) for window in windows])
    return jnp.concatenate([before, packed], axis=-1)


def _windows(windows: list[int | None], tokens: int) -> Int[Array, " kinds"] | None:
    """Of every kind of layers; None: none of them has one."""
    if all(window is None for window in windows):
        return None
    return jnp.asarray([tokens if window is None else min(window, tokens) for window in windows], jnp.int32)


def _angles(
    rotation: Rotation | None, width: int, segment_ids: Int[Array, "B T"], positions: Int[Array, "B T *axes"]
) -> Angles:
    if rotation is None:
        return rotary_angles(segment_ids, jnp.zeros(width // 2))
    scaling = rotation.scaling
    lengths = segment_lengths(segment_ids, positions) if scaling is not None and scaling.needs_lengths else None
    frequencies = rotary_frequencies(rotation.width, rotation.theta, scaling, lengths)
    turning = along_sections(positions, rotation.sections)
    return rotary_angles(turning, frequencies, 1.0 if scaling is None else scaling.magnitude)
