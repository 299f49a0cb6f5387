"""Which rows a process builds, and how its rows become global arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from data_pipelines.batch import Batch

_IMAGE_FIELDS = frozenset({"images", "image_mask", "instructions"})


def process_lanes(sharding: NamedSharding, rows: int, lanes: int) -> tuple[int, ...]:
    """Returns the lanes that have a row on a device of this process, ascending.

    Args:
        sharding: of a token array [B, T].
        rows: B of the global batch.
        lanes: of the stream; row r belongs to lane r // (rows / lanes).
    """
    return tuple(sorted(_lanes_of_processes(sharding, rows, lanes)[jax.process_index()]))


def counted_lanes(sharding: NamedSharding, rows: int, lanes: int) -> frozenset[int]:
    """Returns the lanes of this process that no process with a smaller index builds too.

    Over all processes, each lane is counted once. Arguments as for `process_lanes`.
    """
    built = _lanes_of_processes(sharding, rows, lanes)
    earlier = (built[process] for process in built if process < jax.process_index())
    return frozenset(built[jax.process_index()].difference(*earlier))


def _lanes_of_processes(sharding: NamedSharding, rows: int, lanes: int) -> dict[int, set[int]]:
    built: dict[int, set[int]] = {jax.process_index(): set()}
    placed: Mapping[Any, Any] = _rows_only(sharding).devices_indices_map((rows,))
    for device, index in placed.items():
        start, stop, _ = index[0].indices(rows)
        built.setdefault(device.process_index, set()).update(row // (rows // lanes) for row in range(start, stop))
    return built


def global_batch(local: Batch, sharding: NamedSharding, rows: int, lanes: tuple[int, ...], rows_per_lane: int) -> Batch:
    """Returns global `jax.Array`s of B = `rows` from the rows of this process's lanes.

    Token arrays take `sharding` whole; image arrays take its first axis, the rows.
    """
    first_row = {lane: order * rows_per_lane for order, lane in enumerate(lanes)}

    def place(name: str, array: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            # The lanes of a device's rows follow one another, so the rows are contiguous here too.
            begin = first_row[start // rows_per_lane] + start % rows_per_lane
            return array[(slice(begin, begin + stop - start), *index[1:])]

        chosen = _rows_only(sharding) if name in _IMAGE_FIELDS else sharding
        return jax.make_array_from_callback((rows, *array.shape[1:]), chosen, shard)

    return Batch(**{name: place(name, array) for name, array in local._asdict().items() if array is not None})


def _rows_only(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
