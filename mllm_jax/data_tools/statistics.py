"""Statistics of the data of a run's stages: the stages' own sources, templates and packing, counted."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipelines.preparation import Preparation
from data_pipelines.sources.opening import open_sources
from data_pipelines.sources.source import Source
from data_pipelines.statistics.language import language_identifier
from data_pipelines.statistics.plots import plots
from data_pipelines.statistics.row_statistics import RowStatistics, row_statistics
from data_pipelines.statistics.sample import spread_entries
from data_pipelines.statistics.source_statistics import Reader, SourceStatistics
from data_pipelines.storage import Storage
from data_pipelines.stream_config import StreamConfig
from data_pipelines.transforms.image import ImageTransformConfig, stated_size
from mllm_jax.checkpoint.layout import write_whole
from mllm_jax.data_side import DataSide
from mllm_jax.training.stages import StageConfig


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """What a stage's data hold."""

    name: str
    template: str | None
    """None: no template has a part in it."""
    limit: int | None
    """Records of each source that were read at most; None: all were."""
    sources: dict[str, SourceStatistics]
    rows: RowStatistics | None
    no_rows: str | None = None
    """Why there are no rows."""
    languages_known: bool = True
    """Whether a library tells the language of texts."""

    def to_json(self) -> dict[str, Any]:
        """Everything, for `stats.json`."""
        return {
            "stage": self.name,
            "template": self.template,
            "records_limit": self.limit,
            "sources": {name: each.to_json() for name, each in self.sources.items()},
            "rows": None if self.rows is None else self.rows.to_json(),
            "no_rows": self.no_rows,
        }


def stage_statistics(
    data: DataSide, stage: StageConfig, limit: int | None = None, met: Callable[[], Any] = lambda: None
) -> StageStatistics:
    """Reads the sources that a stage draws from, each record once, and then packs rows of them.

    Args:
        data: of the run.
        stage: one of its stages.
        limit: records of each source, spread over its shards; None: all of them.
        met: called after every record.

    Raises:
        ValueError: a source holds no record, or as training would raise before its first step.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--records: found {limit}, expected at least 1")
    storage, language = Storage(data.config.data.storage), language_identifier()
    preparation = data.preparation(stage, storage)
    stream = data.config.data.stream(stage.mixture, stage.row_length, stage.images_per_row)
    transform = ImageTransformConfig.model_validate(data.config.model.image_transform)
    reader = Reader(
        stream=stream,
        render=preparation.render,
        image_tokens=preparation.image_tokens,
        size_of=lambda encoded: stated_size(encoded, transform),
        storage=storage,
        language=language,
    )
    opened = open_sources(stream, data.config.data.sources, storage)
    found = {name: _read(reader, name, source, limit, met) for name, source in opened.items()}
    rows, no_rows = _rows(stream, opened, preparation, found)
    template = None if stage.name in data.captions else stage.template or data.config.model.chat_template
    return StageStatistics(stage.name, template, limit, found, rows, no_rows, language is not None)


def _read(reader: Reader, name: str, source: Source, limit: int | None, met: Callable[[], Any]) -> SourceStatistics:
    found = SourceStatistics()
    for entry in islice(spread_entries(source, reader.stream.seed), limit):
        reader.count(source, entry, found)
        met()
    if not found.records:
        count = len(source.shards)
        raise ValueError(
            f"data.sources.{name}: the {count} shard{'s' * (count > 1)} from {source.shards[0]} on hold no record at "
            "all; check the data or the pattern"
        )
    return found


def _rows(
    stream: StreamConfig, opened: dict[str, Source], preparation: Preparation, found: dict[str, SourceStatistics]
) -> tuple[RowStatistics | None, str | None]:
    """Rows of a stage, or why there are none."""
    records = sum(each.good for each in found.values())
    bad = {name: each.bad_image_share for name, each in found.items()}
    try:
        return row_statistics(stream, opened, preparation.render, preparation.image_tokens, records, bad), None
    except ValueError as error:
        # A source of which nothing is usable; the causes that were counted say more than this alone.
        return None, str(error)


def statistics_json(run: str, stages: Sequence[StageStatistics]) -> dict[str, Any]:
    """The content of `stats.json`."""
    return {"run": run, "stages": [stage.to_json() for stage in stages]}


def write_statistics(run: str, stages: Sequence[StageStatistics], folder: str | Path) -> None:
    """Writes `stats.json`, and `STAGE.svg` for every stage, into a folder."""
    folder = Path(folder)
    told = json.dumps(statistics_json(run, stages), indent=1, ensure_ascii=False)
    write_whole(folder / "stats.json", told + "\n")
    for stage in stages:
        write_whole(folder / f"{stage.name}.svg", plots(f"stage {stage.name}", stage.sources, stage.rows))
