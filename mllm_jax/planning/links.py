"""How long a collective takes on the links between devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm_jax.planning.groups import Groups, coordinates_of
from mllm_jax.planning.topology import Topology


@dataclass(frozen=True)
class Links:
    """The links of a topology, and where on it the devices of a mesh lie."""

    topology: Topology
    coordinates: np.ndarray | None
    """[devices of the mesh, axes of the torus]; None: every device reaches every other of its host alike."""

    @classmethod
    def of(cls, topology: Topology, devices: Sequence[Any]) -> "Links":
        return cls(topology, coordinates_of(devices) if topology.is_tpu else None)

    def seconds(self, kind: str, size: float, groups: Groups) -> float:
        """Of one collective, where nothing else uses its links; without the latency of its messages.

        A ring sends and receives in both directions at once, along every axis of the torus that a group spans; where
        the ends of an axis are not linked, half as much. From https://jax-ml.github.io/scaling-book/sharding/.

        Args:
            kind: such as `all-gather`.
            size: bytes of the larger of what a device puts in and gets out.
            groups: the devices that take part; of a collective-permute its pairs.
        """
        chip = self.topology.chip
        if chip is None or groups.shape[-1] < 2 or not size:
            return 0.0
        if self.coordinates is None:
            return _passes(kind) * size * (1 - 1 / groups.shape[1]) / chip.link_bytes_per_second
        if kind == "collective-permute":
            return size * max(1, self._hops(groups)) / chip.link_bytes_per_second
        spans = self._spans(groups)
        links = sum(2 if wraps else 1 for _, wraps in spans) or 1
        if "all-to-all" in kind:
            # Every device sends to every other: on average over a quarter of a ring, or a third of a line.
            along = [length / 8 if wraps else length / 4 for length, wraps in spans]
            return size * sum(along) / max(len(along), 1) / chip.link_bytes_per_second
        return _passes(kind) * size * (1 - 1 / groups.shape[1]) / (links * chip.link_bytes_per_second)

    def direction(self, groups: Groups) -> str:
        """What a collective-permute occupies: links in one direction of one axis, so that two that go opposite ways do
        not wait for one another."""
        if self.coordinates is None or not len(groups):
            return "links"
        steps = self.coordinates[groups[:, 1]] - self.coordinates[groups[:, 0]]
        axis = int(np.argmax(np.abs(steps).sum(axis=0)))
        return f"axis {axis} {'+' if np.sum(steps[:, axis] == 1) >= np.sum(steps[:, axis] == -1) else '-'}"

    def _spans(self, groups: Groups) -> list[tuple[int, bool]]:
        """Length of every axis of the torus that a group spans, and whether its ends are linked."""
        assert self.coordinates is not None
        members = self.coordinates[groups[0]]
        spans = []
        for axis in range(len(self.topology.shape)):
            length = len(np.unique(members[:, axis]))
            whole = length == self.topology.shape[axis]
            if length > 1:
                spans.append((length, whole and self.topology.wraps(axis)))
        return spans

    def _hops(self, pairs: Groups) -> int:
        """Links between the two devices of the pair that lies farthest apart."""
        assert self.coordinates is not None
        apart = np.abs(self.coordinates[pairs[:, 1]] - self.coordinates[pairs[:, 0]])
        for axis, length in enumerate(self.topology.shape):
            if self.topology.wraps(axis):
                apart[:, axis] = np.minimum(apart[:, axis], length - apart[:, axis])
        return int(apart.sum(axis=1).max(initial=0))


def _passes(kind: str) -> float:
    """How often the bytes go round: an all-reduce scatters sums and gathers them."""
    return 2.0 if kind == "all-reduce" else 1.0
