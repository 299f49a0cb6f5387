"""Rows in the terminal: what a page shows, in colours where there are any and readable without them."""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from data_pipelines.showing.rows import (
    ImageSpan,
    Shown,
    ShownPadding,
    ShownRow,
    ShownSegment,
    ShownSlot,
    ShownToken,
    counted,
)

COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "red")
"""Of segments, in turn."""
KINDS = {"text": "", "special": "dim", "bytes": "italic", "unknown": "bold red"}
LEGEND = "⟦supervised⟧   [slot 0: 9 places] take the features of an image   ╱╱ padding"
THUMBNAIL = (20, 20)
"""Pixels at most, across and down; a character shows two, one above the other."""


def print_rows(shown: Shown, console: Console) -> None:
    """Prints rows one below the other."""
    console.print(Text(f"{shown.run}, stage {shown.stage}", "bold"))
    for name, value in shown.facts.items():
        console.print(Text(f"  {name}: ", "dim").append(value, "not dim"), soft_wrap=False)
    console.print(Text(f"  {_shares(shown)}"))
    if shown.skipped:
        skipped = ", ".join(f"{cause} {count}" for cause, count in shown.skipped.items())
        console.print(Text(f"  left out on the way: {skipped}", "yellow"))
    console.print(Text(LEGEND, "dim"))
    for row in shown.rows:
        console.print(_panel(row, console))


def _shares(shown: Shown) -> str:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in shown.counts.shares().items())
    return f"{counted(len(shown.rows), 'row')}: {shares}"


def _panel(row: ShownRow, console: Console) -> Panel:
    parts: list[RenderableType] = [Text(row.summary, "dim")]
    for number, part in enumerate(row.parts):
        if isinstance(part, ShownPadding):
            parts.append(Text(f"╱╱ {part.label}", "dim"))
        else:
            parts += _segment(part, row, COLOURS[number % len(COLOURS)], console)
    return Panel(Group(*parts), title=Text(row.title), title_align="left")


def _segment(segment: ShownSegment, row: ShownRow, colour: str, console: Console) -> Iterator[RenderableType]:
    yield Text(" ").join(_heading(segment, colour))
    own = [row.slots[number] for number in segment.slots if row.slots[number].pixels is not None]
    if own and console.color_system in ("256", "truecolor"):
        yield Columns([_thumbnail(slot, slot.pixels) for slot in own if slot.pixels is not None], padding=(0, 1))
    for slot in own:
        if slot.instruction is not None:
            yield Text(f"  slot {slot.number} is asked: {slot.instruction}", "dim")
    yield Text("").join(_texts(segment, colour))


def _heading(segment: ShownSegment, colour: str) -> Iterator[Text]:
    yield Text(f"segment {segment.number}", f"bold {colour}")
    if segment.answer is not None:
        yield Text(segment.answer, "bold green" if segment.answer == "chosen" else "bold red")
    yield Text(segment.key)
    yield Text(f"({', '.join(segment.notes)})", "dim")
    if segment.problem:
        yield Text(segment.problem, "bold red")


def _texts(segment: ShownSegment, colour: str) -> Iterator[Text]:
    for span in segment.spans:
        if isinstance(span, ImageSpan):
            yield Text(span.label, f"reverse {colour}")
        else:
            inside = Text("").join(_token(token, colour) for token in span.tokens)
            yield Text.assemble(("⟦", "dim"), inside, ("⟧", "dim")) if span.supervised else inside


def _token(token: ShownToken, colour: str) -> Text:
    supervised = f"{colour} bold underline " if token.weight else ""
    return Text(token.text, supervised + KINDS[token.kind])


def _thumbnail(slot: ShownSlot, pixels: np.ndarray) -> Text:
    """An image small, two pixels a character."""
    image = Image.fromarray(pixels)
    image.thumbnail(THUMBNAIL)
    small = np.asarray(image)
    text = Text(f"slot {slot.number}\n", "dim")
    for upper, lower in zip(small[::2], small[1::2], strict=False):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            colours = "rgb({},{},{}) on rgb({},{},{})".format(*above, *below)
            text.append("▀", f"not dim {colours}")
        text.append("\n")
    return text
