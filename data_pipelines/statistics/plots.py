"""Histograms of a stage's data as one SVG."""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data_pipelines.statistics.histogram import ACCURACY, Histogram
from data_pipelines.statistics.row_statistics import RowStatistics
from data_pipelines.statistics.source_statistics import MEASURES, SourceStatistics

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

COLUMNS = 3
BARS = 32
"""Of a histogram over many values."""
LANGUAGES = 8
"""That have a bar of their own."""


def check_plots() -> None:
    """Raises ValueError where plots cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib, which is not installed: pip install 'mllm_jax[statistics]'")


def plots(title: str, sources: Mapping[str, SourceStatistics], rows: RowStatistics | None) -> str:
    """Every measure by source, causes of skips, languages, and how full rows are; the same data give the same SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    measured = [name for name in MEASURES if any(found.measures[name].count for found in sources.values())]
    counted = {"left out, by cause": "skipped", "language": "languages"}
    shown = {label: name for label, name in counted.items() if any(getattr(each, name) for each in sources.values())}
    places = len(measured) + len(shown) + (0 if rows is None else 2)
    lines = -(-places // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.8 * lines + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = iter(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    for name in measured:
        _draw_histograms(next(axes), MEASURES[name], {key: each.measures[name] for key, each in sources.items()})
    for label, name in shown.items():
        _draw_counts(next(axes), label, {key: getattr(each, name) for key, each in sources.items()})
    if rows is not None:
        _draw_histograms(next(axes), f"tokens a row of {rows.row_length}", {"rows": rows.tokens})
        _draw_histograms(next(axes), f"image slots filled of {rows.images_per_row}", {"rows": rows.image_slots})
    for empty in axes:
        empty.set_visible(False)
    drawn = io.StringIO()
    # Without a salt of its own matplotlib names the parts of the picture anew every time.
    with matplotlib.rc_context({"svg.hashsalt": "mllm", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _draw_histograms(axes: "Axes", label: str, histograms: Mapping[str, Histogram]) -> None:
    """Shares of records (images, rows) by value."""
    import numpy as np

    known = {name: histogram for name, histogram in histograms.items() if histogram.count}
    edges = _edges(axes, list(known.values()))
    for name, histogram in known.items():
        values, counts = zip(*histogram.buckets(), strict=True)
        heights, _ = np.histogram(values, edges, weights=counts)
        axes.stairs(heights / histogram.count, edges, fill=len(known) == 1, label=name)
    axes.set_title(label)
    axes.set_ylabel("share")
    if len(known) > 1:
        axes.legend()


def _edges(axes: "Axes", histograms: Sequence[Histogram]) -> "np.ndarray":
    """The bounds of the bars; the scale becomes logarithmic where values differ by much."""
    import numpy as np
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    least = min(histogram.least for histogram in histograms)
    most = max(histogram.most for histogram in histograms)
    if least > 0 and most / least > 20:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if most / least < 300 else (1.0,)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return np.geomspace(least * 0.99, most * 1.01, BARS + 1)
    if most - least <= BARS and all(value == int(value) for each in histograms for value, _ in each.buckets()):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return np.arange(least - 0.5, most + 1.5)
    # A bar that is narrower than a bucket would stand beside empty ones.
    bars = max(1, min(BARS, int((most - least) / (5 * ACCURACY * most))))
    return np.linspace(least, most * 1.001, bars + 1)


def _draw_counts(axes: "Axes", label: str, counts: Mapping[str, Mapping[str, int]]) -> None:
    """The commonest names of all sources, a bar for each source."""
    import numpy as np

    totals: dict[str, int] = {}
    for each in counts.values():
        for name, count in each.items():
            totals[name] = totals.get(name, 0) + count
    names = sorted(totals, key=lambda name: (-totals[name], name))[:LANGUAGES]
    width = 0.8 / len(counts)
    for number, (source, each) in enumerate(counts.items()):
        axes.barh(np.arange(len(names)) + number * width, [each.get(name, 0) for name in names], width, label=source)
    axes.set_yticks(np.arange(len(names)) + 0.4 - width / 2, names)
    axes.invert_yaxis()
    axes.set_title(label)
    axes.set_xlabel("records")
    if len(counts) > 1:
        axes.legend()
