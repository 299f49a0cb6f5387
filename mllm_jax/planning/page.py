"""Plans on a page of HTML that stands alone: a bar for every term of the time, and for all that holds memory."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from mllm_jax.planning.stage_plan import StagePlan
from mllm_jax.planning.terminal import plan_title, time_terms, warnings
from mllm_jax.training.progress import short
from mllm_jax.training.summary import size

Bar = tuple[str, float, str, str]
"""Name, length, written length, and class of its colour."""


def write_page(path: str, run_file: str, plans: Sequence[StagePlan]) -> None:
    """Writes the page; loads nothing, and runs no script."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page_of(run_file, plans), encoding="utf-8")


def page_of(run_file: str, plans: Sequence[StagePlan]) -> str:
    html = Element("html", {"lang": "en"})
    head = SubElement(html, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    SubElement(head, "title").text = f"plan of {run_file}"
    SubElement(head, "style").text = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    main = SubElement(SubElement(html, "body"), "main")
    SubElement(main, "h1").text = f"Plan of {run_file}"
    for plan in plans:
        _stage(SubElement(main, "section"), plan)
    return "<!doctype html>\n" + tostring(html, encoding="unicode", method="html") + "\n"


def _stage(section: Element, plan: StagePlan) -> None:
    SubElement(section, "h2").text = plan.stage.name
    SubElement(section, "p").text = plan_title(plan)
    if not plan.fits:
        SubElement(section, "p", {"class": "wrong"}).text = "Does not fit in the memory of a device."
    _facts(section, plan)
    terms = [_time_bar(name, seconds, plan) for name, seconds in time_terms(plan)] if plan.predicted else []
    if terms:
        _bars(section, "Predicted time of a step", terms, plan.predicted or 1.0)
    _bars(section, "Memory of a device", _memory_bars(plan), _capacity(plan))
    if plan.cost is not None and plan.cost.collectives:
        _collectives(section, plan)
    for warning in warnings(plan):
        SubElement(section, "p").text = f"! {warning}"


def _facts(section: Element, plan: StagePlan) -> None:
    facts: dict[str, str] = {}
    if plan.predicted is not None and plan.expected is not None:
        facts["predicted step"] = f"{1e3 * plan.predicted:,.1f} ms"
        facts["likely measured"] = f"{1e3 * plan.expected:,.1f} ms"
    if plan.mfu is not None:
        facts["predicted MFU"] = f"{plan.mfu:.3f}"
    if plan.memory is not None:
        facts["memory at the worst moment"] = size(int(plan.memory.peak))
    if plan.feed is not None:
        facts["tokens a day"] = f"{plan.feed.tokens_per_day:.3g}"
        facts["images/s a host"] = short(plan.feed.images_per_host)
    if plan.bill is not None:
        facts["hours"], facts["chip hours"] = f"{plan.bill.hours:,.2f}", f"{plan.bill.chip_hours:,.1f}"
        facts |= {} if plan.bill.price is None else {"price": f"{plan.bill.price:,.2f}"}
    listed = SubElement(section, "dl")
    for name, value in facts.items():
        fact = SubElement(listed, "div")
        SubElement(fact, "dt").text, SubElement(fact, "dd").text = name, value


def _time_bar(name: str, seconds: float, plan: StagePlan) -> Bar:
    share = f"{1e3 * seconds:,.1f} ms, {seconds / (plan.predicted or 1.0):.1%}"
    return name, seconds, share, "wait" if name.startswith("waiting") else "compute"


def _memory_bars(plan: StagePlan) -> list[Bar]:
    held = dict(plan.state)
    if plan.memory is not None:
        held["padding of these"] = max(0.0, plan.memory.arguments - sum(plan.state.values()))
        held["temporaries at the worst moment"] = plan.memory.temporaries
    if plan.failure is not None:
        held |= {buffer.shape: buffer.bytes for buffer in plan.failure.buffers}
    return [(name, each, size(int(each)), "held") for name, each in held.items()]


def _capacity(plan: StagePlan) -> float:
    largest = max(each for _, each, _, _ in _memory_bars(plan))
    chip = plan.topology.chip
    return largest if chip is None else max(largest, chip.memory_bytes)


def _bars(section: Element, title: str, bars: Sequence[Bar], whole: float) -> None:
    SubElement(section, "h3").text = title
    grid = SubElement(section, "div", {"class": "bars"})
    for name, length, written, colour in bars:
        SubElement(grid, "div").text = name
        track = SubElement(grid, "div", {"class": "track"})
        SubElement(track, "div", {"class": f"fill {colour}", "style": f"width: {100 * length / whole:.2f}%"})
        SubElement(grid, "div", {"class": "number"}).text = written


def _collectives(section: Element, plan: StagePlan) -> None:
    SubElement(section, "h3").text = "Collectives of a device in a step"
    table = SubElement(section, "table")
    _row(table, "th", ("collective", "over", "executed", "bytes", "ms of links", "ms waited"))
    assert plan.cost is not None
    for use in sorted(plan.cost.collectives.values(), key=lambda use: -use.bytes):
        times = (f"{1e3 * use.seconds:,.1f}", f"{1e3 * use.exposed:,.1f}")
        _row(table, "td", (use.kind, use.axes, f"{use.count:,.0f}", size(int(use.bytes)), *times))


def _row(table: Element, tag: str, cells: Sequence[str]) -> None:
    row = SubElement(table, "tr")
    for cell in cells:
        SubElement(row, tag).text = cell
