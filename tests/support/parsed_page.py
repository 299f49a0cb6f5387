"""A page of HTML, parsed: what a browser would make of it."""

import base64
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = frozenset({"meta", "img"})


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    """Of it and of all within it."""
    within: list["Element"] = field(default_factory=list)
    """Every element below it, in order."""

    def all(self, tag: str, kind: str | None = None) -> list["Element"]:
        """The elements below of a tag and, if given, a class."""
        return [each for each in self.within if each.tag == tag and (kind is None or kind in each.classes)]

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    @property
    def pixels(self) -> np.ndarray:
        """Of an image in a data URI."""
        kind, _, data = (self.attributes["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Element("page", {})
        self._open = [self.page]

    def handle_starttag(self, tag, attrs) -> None:
        element = Element(tag, dict(attrs))
        for each in self._open:
            each.within.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data) -> None:
        for each in self._open:
            each.text += data

    def close(self) -> None:
        super().close()
        assert self._open == [self.page], "an element is not closed"


def parsed(page: str) -> Element:
    """The page's elements; every one must be closed where it belongs."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    return parser.page
