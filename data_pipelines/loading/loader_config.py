"""What works on batches."""

from pydantic import Field

from data_pipelines.config_class import Config


class LoaderConfig(Config):
    """What works on batches. Nothing of it changes what they hold, so a run may go on with other values."""

    threads: int = Field(default=2, gt=0)
    """Threads that decode images, in every process that does."""
    prefetch: int = Field(default=2, gt=0)
    """Batches made ahead of the step."""
    processes: int = Field(default=0, ge=0)
    """Processes that load the batches of one process of the run; each packs and decodes the rows of some lanes, so that
    more than it has lanes are not started. 0: threads of its own do, and share one core for what is Python."""
