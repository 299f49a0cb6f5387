"""How many cores of its hosts a model's training needs for its data."""

import math
from typing import NamedTuple

from mllm_jax.training.flops import peak_flops


class Accelerator(NamedTuple):
    device_kind: str
    """As JAX names it; `peak_flops` knows it."""
    devices_per_host: int
    """That one machine has in the clouds, where slices span several machines."""

    @property
    def peak(self) -> float:
        """Dense bf16 FLOP/s of a device."""
        found = peak_flops(self.device_kind)
        assert found is not None, self.device_kind
        return found


ACCELERATORS = {
    "v5e": Accelerator("TPU v5e", 4),
    "v5p": Accelerator("TPU v5p", 4),
    "v6e": Accelerator("TPU v6e", 4),
    "h100": Accelerator("NVIDIA H100", 8),
    "a100": Accelerator("NVIDIA A100", 8),
}
"""By the name on the command line."""


class RowCost(NamedTuple):
    """What a row costs on average."""

    flops: float
    """Of the model, on the devices."""
    samples: float
    """That are in it."""
    images: float
    """Image slots that are filled."""
    cpu_seconds: float
    """Of a host's cores, to load it."""
    packing_seconds: float
    """Of these, those of the one thread of a process that packs rows."""


class HostCores(NamedTuple):
    """What the devices could eat, and the cores that feed them."""

    hosts: int
    rows_per_second: float
    """Of all devices."""
    samples_per_second: float
    images_per_second: float
    images_per_second_per_device: float
    cores: float
    """Of all hosts together."""
    cores_per_host: float
    processes_per_host: int
    """That must load at least, for the packing thread of one would be too slow."""


def host_cores(accelerator: Accelerator, devices: int, mfu: float, row: RowCost) -> HostCores:
    """The cores that keep devices busy which run at a share of their peak.

    Args:
        accelerator: what kind they are.
        devices: how many.
        mfu: share of the peak FLOP/s that the model's own operations reach.
        row: of the stage.
    """
    hosts = math.ceil(devices / accelerator.devices_per_host)
    rows = accelerator.peak * mfu * devices / row.flops
    return HostCores(
        hosts=hosts,
        rows_per_second=rows,
        samples_per_second=rows * row.samples,
        images_per_second=rows * row.images,
        images_per_second_per_device=rows * row.images / devices,
        cores=rows * row.cpu_seconds,
        cores_per_host=rows * row.cpu_seconds / hosts,
        processes_per_host=max(1, math.ceil(rows * row.packing_seconds / hosts)),
    )
