"""What `mllm data stats` shows in the terminal."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.statistics.copies import Copies
from data_pipelines.statistics.histogram import Histogram
from data_pipelines.statistics.plots import check_plots
from data_pipelines.statistics.row_statistics import RowStatistics
from data_pipelines.statistics.source_statistics import MEASURES, SourceStatistics
from mllm_jax.config import RunConfig, stage_named
from mllm_jax.data_side import DataSide, data_side
from mllm_jax.data_tools.statistics import StageStatistics, stage_statistics, statistics_json, write_statistics
from mllm_jax.training.progress import short
from mllm_jax.training.stages import StageConfig

LANGUAGES = 5
"""Of a source that are told."""


def show_statistics(
    config: RunConfig, stage: str | None, limit: int | None, output: str | None, *, as_json: bool
) -> None:
    """Counts what the stages' data hold, with a progress line, and tells it.

    Args:
        config: of the run.
        stage: the name of one; None: all.
        limit: records of each source; None: all of them.
        output: folder for `stats.json` and plots; None: neither is written.
        as_json: whether one line of JSON is printed, and no tables.
    """
    chosen = config.stages if stage is None else (stage_named(config, stage),)
    if output is not None:
        check_plots()
    data = data_side(config)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        found = [_counted(data, each, limit, progress) for each in chosen]
    if as_json:
        print(json.dumps(statistics_json(config.output, found), ensure_ascii=False))
    else:
        for each in found:
            print_statistics(each, Console())
    if output is not None:
        write_statistics(config.output, found, output)
        Console(stderr=as_json).print(f"statistics and plots: {output}", markup=False, highlight=False, soft_wrap=True)


def _counted(data: DataSide, stage: StageConfig, limit: int | None, progress: Progress) -> StageStatistics:
    total = None if limit is None else limit * len(stage.mixture.drawn)
    task = progress.add_task(f"records of stage {stage.name}", total=total)
    return stage_statistics(data, stage, limit, lambda: progress.advance(task))


def print_statistics(stage: StageStatistics, console: Console) -> None:
    """The records of every source beside each other, and the rows that are packed of them."""
    console.print(_sources_table(stage))
    if stage.rows is not None:
        console.print(_rows_table(stage.rows, f"stage {stage.name}: {stage.rows.rows} packed rows"))
    for line in (stage.no_rows, stage.rows and stage.rows.refused):
        if line:
            console.print(f"a run would stop: {line}", markup=False, highlight=False, soft_wrap=True)


def _sources_table(stage: StageStatistics) -> Table:
    sampled = "" if stage.limit is None else f", at most {stage.limit} a source"
    template = "no template" if stage.template is None else f"template {stage.template}"
    table = Table(title=f"stage {stage.name}: records as they are read ({template}{sampled})", title_justify="left")
    table.add_column("")
    sources = stage.sources | ({"all": _sum(stage.sources)} if len(stage.sources) > 1 else {})
    for name in sources:
        table.add_column(name, justify="right")
    table.caption = "median (5 % to 95 %, most)"
    for label, cell in _lines(stage).items():
        table.add_row(label, *(cell(each) for each in sources.values()))
    return table


def _lines(stage: StageStatistics) -> dict[str, Callable[[SourceStatistics], str]]:
    """Label of a line -> what it says of a source."""
    lines: dict[str, Callable[[SourceStatistics], str]] = {
        "records": lambda each: f"{each.records:,}",
        "left out": lambda each: _part(each.skipped.total(), each.records),
    }
    for cause in sorted({cause for each in stage.sources.values() for cause in each.skipped}):
        lines[f"  {cause}"] = partial(_skipped, cause)
    for cause in sorted({cause for each in stage.sources.values() for cause in each.parts_left_out}):
        lines[f"parts left out: {cause}"] = partial(_parts, cause)
    lines["supervised share"] = lambda each: f"{each.supervised_share:.1%}"
    for name, label in MEASURES.items():
        if any(each.measures[name].most > 0 for each in stage.sources.values()):
            lines[label] = partial(_measured, name)
    lines["images that are copies"] = lambda each: _copies(each.image_copies)
    lines["texts that are copies"] = lambda each: _copies(each.text_copies)
    lines["language"] = lambda each: _languages(each.languages) if stage.languages_known else "py3langid is missing"
    return lines


def _skipped(cause: str, source: SourceStatistics) -> str:
    return _part(source.skipped[cause], source.records)


def _parts(cause: str, source: SourceStatistics) -> str:
    return f"{source.parts_left_out[cause]:,}"


def _measured(name: str, source: SourceStatistics) -> str:
    return _spread(source.measures[name])


def _rows_table(rows: RowStatistics, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("all", justify="right")
    for name in rows.sources:
        table.add_column(name, justify="right")
    told = rows.to_json()
    shares = told["sources"].values()
    table.add_row("token places filled", f"{1 - rows.padding_share:.2%}")
    table.add_row("image slots filled", f"{rows.image_slot_share:.2%}" if rows.images_per_row else "none")
    table.add_row("supervised share", f"{rows.supervised_share:.1%}")
    table.add_row("tokens a row", _spread(rows.tokens))
    table.add_row("records a row", _spread(rows.records))
    table.add_row("weight in the mixture", "", *(f"{each['weight']:.1%}" for each in shares))
    table.add_row("records drawn", f"{rows.records.total:,}", *(f"{each['record_share']:.1%}" for each in shares))
    table.add_row("tokens drawn", f"{rows.tokens.total:,}", *(f"{each['token_share']:.1%}" for each in shares))
    if rows.images_per_row:
        slots = (f"{each['image_slot_share']:.1%}" for each in shares)
        table.add_row("image slots drawn", f"{rows.image_slots.total:,}", *slots)
    return table


def _sum(sources: Mapping[str, SourceStatistics]) -> SourceStatistics:
    total = SourceStatistics()
    for each in sources.values():
        total.merge(each)
    return total


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / max(whole, 1):.2%})" if count else "0"


def _spread(histogram: Histogram) -> str:
    """`median 45, 5 % 12, 95 % 80, most 90`."""
    if not histogram.count:
        return "-"
    if histogram.least == histogram.most:
        return short(histogram.most)
    low, median, high = (short(histogram.quantile(share)) for share in (0.05, 0.5, 0.95))
    return f"{median} ({low} to {high}, most {short(histogram.most)})"


def _copies(copies: Copies) -> str:
    if not copies.seen:
        return "-"
    about = "" if copies.exact else "about "
    return f"{about}{_part(copies.copies, copies.seen)}"


def _languages(languages: Counter[str]) -> str:
    told = [f"{name} {count / languages.total():.1%}" for name, count in languages.most_common(LANGUAGES)]
    rest = len(languages) - len(told)
    return ", ".join(told) + (f", {rest} more" if rest > 0 else "") or "-"
