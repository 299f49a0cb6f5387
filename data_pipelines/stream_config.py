"""What a stream of packed rows depends on."""

from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.mixture import MixtureConfig
from data_pipelines.packing import Overlong


class LaneConfig(Config):
    """How lanes draw, shuffle and pack; the same for all streams of a run."""

    lanes: int = Field(default=8, gt=0)
    """Deterministic streams that the rows come from; a batch's rows must divide by it. Hosts and devices may change."""
    seed: int = Field(default=0, ge=0)
    """Seed of every order."""
    shuffle_window: int = Field(default=1000, gt=0)
    """Records, a lane and source, that are shuffled together."""
    open_shards: int = Field(default=2, gt=0)
    """Shards that a lane reads in turn, a source."""
    open_rows: int = Field(default=16, gt=0)
    """Rows' worth of records, a lane, among which the packer chooses; more fill rows better."""
    overlong: Overlong = "drop"
    """What happens to a record longer than a row: dropped; the text behind its last image cut (`cut`); or ended before
    its first image that does not fit (`cut_images`). All are counted."""
    skip_quota: float = Field(default=0.01, ge=0, le=1)
    """Share of records that may be bad before the run stops."""
    unfit_quota: float = Field(default=0.25, ge=0, le=1)
    """Share of records that may be dropped because they do not fit a row before the run stops."""


class StreamConfig(LaneConfig):
    """What a stream of packed rows depends on; a run cannot go on with another value of any of it."""

    mixture: MixtureConfig
    """Sources by name, with a weight each or what else says how much is drawn of them."""
    row_length: int = Field(default=2048, gt=1)
    """Tokens of a row."""
    images_per_row: int = Field(default=4, ge=0)
    """Image slots of a row."""

    @property
    def names(self) -> tuple[str, ...]:
        """The sources that are drawn from."""
        return tuple(self.mixture.drawn)
