"""What accelerators can do, as the vendors state it, and in which sizes they are to be had."""

from typing import NamedTuple

from mllm_jax.training.flops import peak_flops
from mllm_jax.training.host_cores import ACCELERATORS

GIB = 2**30


class Chip(NamedTuple):
    """One kind of accelerator; one device of JAX is one chip."""

    name: str
    """As in `ACCELERATORS`, which says how many a host has."""
    memory_bytes: int
    """Of HBM that a program may use. On a TPU as the compiler counts it, which is less than the chip has."""
    memory_bytes_per_second: float
    peak_int8: float
    """Operations a second."""
    link_bytes_per_second: float
    """Of one link to a neighbour in one direction; of a GPU to all others of its host."""
    clock: float = 0.0
    """Cycles a second, in which the TPU compiler estimates; 0: it has no such compiler."""
    wraps: int = 0
    """The ends of an axis of the torus are linked where its length is a multiple of this; 0: there is no torus."""
    slices: tuple[tuple[int, ...], ...] = ()
    """Chips along each axis of the slices that are to be had."""

    @property
    def peak(self) -> float:
        """Dense bf16 FLOP/s."""
        found = peak_flops(ACCELERATORS[self.name].device_kind)
        assert found is not None, self.name
        return found

    @property
    def devices_per_host(self) -> int:
        return ACCELERATORS[self.name].devices_per_host


_V5P_SLICES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16)),
    *((16, 16, 16), (16, 16, 24)),
)
_TWO_DIMENSIONAL_SLICES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))

CHIPS = {
    chip.name: chip
    for chip in (
        # cloud.google.com/tpu/docs/v5e, /v5p and /v6e: peaks, HBM, its bandwidth and the sizes of slices; links and
        # clocks: jax-ml.github.io/scaling-book/tpus. The usable HBM is what the compiler says when it runs out of it.
        Chip("v5e", int(15.75 * GIB), 819e9, 394e12, 45e9, 1.5e9, 16, _TWO_DIMENSIONAL_SLICES),
        Chip("v5p", int(95.74 * GIB), 2765e9, 918e12, 90e9, 1.75e9, 4, _V5P_SLICES),
        Chip("v6e", int(31.25 * GIB), 1640e9, 1836e12, 90e9, 1.75e9, 16, _TWO_DIMENSIONAL_SLICES),
        # nvidia.com: data sheets of the H100 SXM and of the A100 80GB SXM; half of what NVLink does in both directions.
        Chip("h100", 80 * 10**9, 3350e9, 1979e12, 450e9),
        Chip("a100", 80 * 10**9, 2039e9, 624e12, 300e9),
    )
}
"""By the name on the command line."""
