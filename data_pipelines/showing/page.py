"""Rows on a page of HTML that stands alone: it loads nothing, and nothing from data becomes markup or script.

Elements are built as a tree, which escapes every text and attribute as it is written.
"""

import base64
import hashlib
import io
from collections.abc import Iterator
from importlib.resources import files
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from PIL import Image

from data_pipelines.showing.rows import (
    ImageSpan,
    Shown,
    ShownBox,
    ShownPadding,
    ShownRow,
    ShownSegment,
    ShownSlot,
    ShownToken,
    counted,
    slot_names,
)

COLOURS = 6
"""Of segments, in turn: `c0`, `c1`, ... of page.css."""
SMALL = 112
"""Pixels; an image narrower than that is drawn larger, with sharp pixels."""
MANY = 2
"""Image slots of a segment; more are drawn smaller."""
AXES = ("time", "row", "column")
"""Of a position that has several."""
LEGEND = (
    ("mark", "", "learned", "supervised: the loss covers predicting it"),
    ("span", "t", "read", "read, not supervised"),
    ("span", "t special", "<s>", "special token"),
    ("span", "t bytes", "<0xE7>", "token of a byte"),
    ("span", "places", "[slot 0: 9 places]", "places that take an image's features"),
    ("span", "t boxed", "[0.1, 0.2, 0.3, 0.4]", "box, drawn in shares of the image's slot"),
    ("span", "padding", "      ", "padding"),
)


def page_of(shown: Shown) -> str:
    """The page, complete."""
    html = Element("html", {"lang": "en"})
    script = _file("page.js")
    _head(html, f"{shown.run}, stage {shown.stage}", script)
    body = SubElement(html, "body")
    _header(SubElement(body, "header"), shown)
    main = SubElement(body, "main")
    for row in shown.rows:
        _row(SubElement(main, "section", {"class": "row"}), row)
    SubElement(body, "div", {"id": "facts"})
    SubElement(body, "script").text = script
    return "<!doctype html>\n" + tostring(html, encoding="unicode", method="html") + "\n"


def _head(html: Element, title: str, script: str) -> None:
    head = SubElement(html, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    SubElement(head, "title").text = title
    SubElement(head, "style").text = _file("page.css")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _header(header: Element, shown: Shown) -> None:
    heading = SubElement(header, "h1")
    heading.text = f"{shown.run}, stage {shown.stage}"
    SubElement(heading, "small").text = "what the model receives, read back from the batches of training"
    shares = SubElement(header, "div", {"class": "shares"})
    for name, share in shown.counts.shares().items():
        tile = SubElement(shares, "div", {"class": "share"})
        SubElement(tile, "b").text = f"{share:.1%}"
        SubElement(tile, "span").text = name
        SubElement(tile, "meter", {"value": f"{share:.4f}"})
    facts = SubElement(header, "dl")
    told = {"shown": counted(len(shown.rows), "row"), **shown.facts}
    if shown.skipped:
        told["left out on the way"] = ", ".join(f"{cause} {count}" for cause, count in shown.skipped.items())
    for name, value in told.items():
        pair = SubElement(facts, "div")
        SubElement(pair, "dt").text = name
        SubElement(pair, "dd").text = value
    legend = SubElement(header, "div", {"class": "legend"})
    for tag, kind, sample, meaning in LEGEND:
        entry = SubElement(legend, "span")
        example = SubElement(entry, tag, {"class": kind} if kind else {})
        example.text, example.tail = sample, meaning


def _row(section: Element, row: ShownRow) -> None:
    SubElement(section, "h2").text = row.title
    SubElement(section, "p").text = row.summary
    _map(SubElement(section, "div", {"class": "map", "aria-hidden": "true"}), row)
    shown: set[int] = set()
    for number, part in enumerate(row.parts):
        if isinstance(part, ShownPadding):
            SubElement(SubElement(section, "div", {"class": "padding"}), "span").text = part.label
            continue
        article = SubElement(section, "article", {"class": f"segment {_colour(number)}"})
        # The two answers of a preference pair share their images, which are drawn once.
        own = [row.slots[slot] for slot in part.slots if slot not in shown and row.slots[slot].pixels is not None]
        shown.update(slot.number for slot in own)
        _segment(article, part, own)
    empty = [slot.number for slot in row.slots if slot.pixels is None]
    if empty:
        emptiness = SubElement(SubElement(section, "div", {"class": "padding"}), "span")
        emptiness.text = f"{counted(len(empty), 'image slot')} empty"


def _colour(number: int) -> str:
    return f"c{number % COLOURS}"


def _map(bar: Element, row: ShownRow) -> None:
    """The row at a glance: what each stretch of its places is."""
    for number, part in enumerate(row.parts):
        if isinstance(part, ShownPadding):
            SubElement(bar, "span", {"class": "pad", "style": f"flex:{part.places}"})
            continue
        for span in part.spans:
            if isinstance(span, ImageSpan):
                kind, places = "image", span.places
            else:
                kind, places = "learned" if span.supervised else "text", len(span.tokens)
            SubElement(bar, "span", {"class": f"{kind} {_colour(number)}", "style": f"flex:{places}"})


def _segment(article: Element, segment: ShownSegment, slots: list[ShownSlot]) -> None:
    heading = SubElement(article, "h3")
    heading.text = f"segment {segment.number} "
    if segment.answer is not None:
        answer = SubElement(heading, "span", {"class": f"answer {segment.answer}"})
        answer.text, answer.tail = segment.answer, " "
    SubElement(heading, "code").text = segment.key
    SubElement(article, "p", {"class": "notes"}).text = ", ".join(segment.notes)
    if segment.problem:
        SubElement(article, "p", {"class": "problem"}).text = segment.problem
    body = SubElement(article, "div", {"class": "body"})
    if slots:
        images = SubElement(body, "div", {"class": "slots many" if len(slots) > MANY else "slots"})
        for slot in slots:
            _figure(images, slot, [box for box in segment.boxes if box.slot == slot.number])
    tokens = SubElement(body, "p", {"class": "tokens"})
    for span in segment.spans:
        if isinstance(span, ImageSpan):
            places = SubElement(tokens, "span", {"class": "places", "title": _image_facts(span)})
            places.text = span.label
        else:
            stretch = SubElement(tokens, "mark" if span.supervised else "span")
            for token in span.tokens:
                _token(stretch, token)


def _token(stretch: Element, token: ShownToken) -> None:
    kinds = ["t", *([token.kind] if token.kind != "text" else []), *(["boxed"] if token.box else [])]
    element = SubElement(stretch, "span", {"class": " ".join(kinds), "title": "\n".join(_token_facts(token))})
    element.text = token.text


def _token_facts(token: ShownToken) -> Iterator[str]:
    yield f"token {token.index} at place {token.place}"
    if token.spells is not None:
        yield f"bytes of {token.spells}"
    yield f"position {_position(token.position)}"
    yield f"supervised, weight {token.weight:g}" if token.weight else "not supervised"
    if token.in_answer:
        yield "in an answer"
    if token.target is not None:
        yield f"predicts {token.target}"
    if token.box is not None:
        yield f"box {token.box}"


def _image_facts(span: ImageSpan) -> str:
    first, last = map(_position, span.positions)
    return f"places {span.start} to {span.start + span.places - 1}\npositions {first} to {last}\nnot supervised"


def _position(position: tuple[int, ...]) -> str:
    if len(position) == 1:
        return str(position[0])
    return ", ".join(f"{axis} {place}" for axis, place in zip(AXES, position, strict=True))


def _figure(images: Element, slot: ShownSlot, boxes: list[ShownBox]) -> None:
    assert slot.pixels is not None
    height, width, _ = slot.pixels.shape
    figure = SubElement(images, "figure")
    frame = SubElement(figure, "div", {"class": "frame small" if width < SMALL else "frame"})
    SubElement(frame, "img", {"src": _data_uri(slot.pixels), "alt": slot_names([slot.number])})
    if boxes:
        drawing = SubElement(frame, "svg", {"viewBox": "0 0 1 1", "preserveAspectRatio": "none"})
    for box in boxes:
        left, top, right, bottom = box.box.upright
        places = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        SubElement(drawing, "rect", {name: f"{value:g}" for name, value in places.items()})
        label = SubElement(frame, "b", {"style": f"left:{left:.1%};top:{top:.1%}"})
        label.text = str(box.number)
    caption = SubElement(figure, "figcaption")
    caption.text = f"slot {slot.number}, {width} x {height}"
    if slot.instruction is not None:
        caption.text += f", asked: {slot.instruction}"


def _data_uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
