"""The machine that a plan is for, by its name on the command line."""

import contextlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from data_pipelines.suggestion import suggest
from mllm_jax.planning.chips import CHIPS, Chip
from mllm_jax.planning.without_a_tpu import prepare_environment

FORMS = "v5e:16x16, v5p:4x4x4, v6e:8x8, h100:8 or cpu:8"


class TopologyError(ValueError):
    """A machine that does not exist, or that nothing here can compile for."""


@dataclass(frozen=True)
class Topology:
    """A machine with equal devices."""

    name: str
    chip: Chip | None
    """None: a CPU, of which no figures are known."""
    shape: tuple[int, ...]
    """Devices along each axis of the torus; one axis where there is none."""

    @property
    def size(self) -> int:
        """Devices."""
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        return self.chip is not None and self.chip.clock > 0

    @property
    def hosts(self) -> int:
        return 1 if self.chip is None else math.ceil(self.size / self.chip.devices_per_host)

    def wraps(self, axis: int) -> bool:
        """Whether the two ends of an axis of the torus are linked."""
        every = 0 if self.chip is None else self.chip.wraps
        return bool(every) and self.shape[axis] % every == 0


def parse_topology(name: str) -> Topology:
    """
    Raises:
        TopologyError: there is no such machine; the message names the nearest ones.
    """
    kind, _, size = name.strip().lower().partition(":")
    chip = CHIPS.get(kind)
    if chip is None and kind != "cpu":
        known = ", ".join((*CHIPS, "cpu"))
        raise TopologyError(
            f"--topology: there is no {kind!r}.{suggest(kind, (*CHIPS, 'cpu'))} Kinds: {known}; write it as {FORMS}"
        )
    if chip is None or not chip.slices:
        if not (size or "1").isdigit() or int(size or "1") < 1:
            raise TopologyError(f"--topology {name}: found {size!r}, expected a number of devices, such as {kind}:8")
        return Topology(f"{kind}:{size or 1}", chip, (int(size or "1"),))
    written = size.split("x")
    if not all(part.isdigit() for part in written):
        raise TopologyError(f"--topology {name}: found {size!r}, expected a slice, one of {_named(chip, chip.slices)}")
    shape = tuple(int(part) for part in written)
    if shape not in chip.slices and tuple(sorted(shape)) not in chip.slices:
        wanted = math.prod(shape)
        nearest = sorted(chip.slices, key=lambda each: abs(math.log(math.prod(each) / max(wanted, 1))))[:2]
        raise TopologyError(
            f"--topology {name}: there is no such slice of {wanted} chips; the nearest are {_named(chip, nearest)}, "
            f"and all are {_named(chip, chip.slices)}"
        )
    return Topology(f"{kind}:{size}", chip, shape)


def _named(chip: Chip, slices: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(f"{chip.name}:{'x'.join(str(length) for length in each)}" for each in slices)


def devices_of(topology: Topology) -> list[Any]:
    """The devices that a step is compiled for: of a TPU that need not be there, or of this machine's CPU.

    Raises:
        TopologyError: libtpu is not installed, this process has begun with fewer simulated devices, or a GPU is asked
            for, for which nothing compiles without one.
    """
    if topology.is_tpu:
        return _tpu_devices(topology)
    if topology.chip is not None:
        raise TopologyError(f"{topology.name}: no compiler for a GPU runs on a machine without one")
    devices = jax.devices("cpu")
    if len(devices) < topology.size:
        raise TopologyError(
            f"{topology.name}: this process simulates {len(devices)} devices of a CPU; begin a new one, in which "
            "nothing has used JAX"
        )
    return list(devices[: topology.size])


def _tpu_devices(topology: Topology) -> list[Any]:
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            f"{topology.name}: the TPU compiler is not installed: pip install 'mllm_jax[plan]' brings libtpu, which "
            "needs no TPU"
        )
    prepare_environment()
    single = {"chips_per_host_bounds": [1, 1, 1]} if topology.size == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **single)
    except RuntimeError as error:
        raise TopologyError(f"{topology.name}: the TPU compiler does not know it: {error}") from error
    return list(found.devices)


def simulate_devices(topology: Topology) -> None:
    """Lets this process run JAX on a CPU with enough simulated devices; called before anything uses JAX."""
    jax.config.update("jax_platforms", "cpu")
    if topology.chip is None:
        # Once JAX has begun, it has as many as it began with; `devices_of` counts them.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", topology.size)
