"""What the input pipeline must deliver to a step, and what a stage takes of time and money."""

from typing import NamedTuple

from mllm_jax.planning.topology import Topology
from mllm_jax.training.stages import StageConfig

DAY = 86400.0


class Feed(NamedTuple):
    """A second of the whole run, if every token place and every image slot of its rows is filled."""

    rows: float
    samples: float
    images: float
    tokens: float
    images_per_host: float
    samples_per_host: float
    bytes_per_host: float
    """Of the arrays of batches, as they cross to the devices."""

    @property
    def tokens_per_day(self) -> float:
        return self.tokens * DAY

    @property
    def images_per_day(self) -> float:
        return self.images * DAY


def feed(stage: StageConfig, topology: Topology, seconds: float, row_bytes: float, samples_per_row: float) -> Feed:
    """
    Args:
        stage: whose batches they are.
        topology: its machine.
        seconds: of a step.
        row_bytes: of the arrays of one row.
        samples_per_row: that are packed into a row.
    """
    rows, hosts = stage.rows / seconds, topology.hosts
    images = rows * stage.images_per_row
    return Feed(
        rows=rows,
        samples=rows * samples_per_row,
        images=images,
        tokens=rows * stage.row_length,
        images_per_host=images / hosts,
        samples_per_host=rows * samples_per_row / hosts,
        bytes_per_host=rows * row_bytes / hosts,
    )


class Bill(NamedTuple):
    """Of a whole stage."""

    hours: float
    chip_hours: float
    price: float | None
    """In the currency of the price; None: none was given."""


def bill(stage: StageConfig, topology: Topology, seconds: float, price_per_chip_hour: float | None) -> Bill:
    """Steps alone: compilation, checkpoints and validation come on top."""
    hours = stage.steps * seconds / 3600
    chip_hours = hours * topology.size
    return Bill(hours, chip_hours, None if price_per_chip_hour is None else chip_hours * price_per_chip_hour)
