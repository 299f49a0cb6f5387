"""What the records of one source hold, and which of them a stage cannot use."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.lanes import Render, rendered_or_skip
from data_pipelines.packing import fit
from data_pipelines.quota import CUT, Skip
from data_pipelines.record import ImagePart, Record, TextPart
from data_pipelines.rendered import RenderedRecord
from data_pipelines.sources.source import Entry, Source
from data_pipelines.statistics.copies import Copies, hash_of
from data_pipelines.statistics.histogram import Histogram
from data_pipelines.storage import Storage
from data_pipelines.stream_config import StreamConfig
from data_pipelines.transforms.image_error import ImageError

MEASURES = {
    "tokens": "tokens a record",
    "supervised_tokens": "supervised tokens a record",
    "turns": "turns a record",
    "images": "images a record",
    "image_slots": "image slots a record",
    "image_width": "image width, pixels",
    "image_height": "image height, pixels",
    "aspect_ratio": "image width / height",
    "image_bytes": "image file, bytes",
}
"""Key of what is counted in a histogram -> what it is, for people."""


@dataclass(slots=True)
class SourceStatistics:
    """Counts over records of one source; those of parts add up to those of all.

    Lengths are those of every record that could be rendered, also of one that does not fit a row; turns, texts and
    images are those of every record that could be read.
    """

    records: int = 0
    """Records met, good and bad."""
    skipped: Counter[str] = field(default_factory=Counter)
    """By the cause for which a run would leave them out, as far as no image need be decoded to find it."""
    bad_images: int = 0
    """Records among these that would be in a row before their image is found to be bad."""
    parts_left_out: Counter[str] = field(default_factory=Counter)
    """What is left out of records that are used, by cause: images that a filter refuses, and by `filtered_tail` ends
    that do not fit a row."""
    measures: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in MEASURES})
    image_copies: Copies = field(default_factory=Copies)
    """Of images, byte for byte."""
    text_copies: Copies = field(default_factory=Copies)
    """Of records, by the roles and texts of all turns."""
    languages: Counter[str] = field(default_factory=Counter)
    """Of records with text; none where no library tells."""

    @property
    def good(self) -> int:
        """Records that a run uses."""
        return self.records - self.skipped.total()

    @property
    def bad_image_share(self) -> float:
        """Of the records that a row takes."""
        return self.bad_images / max(self.good + self.bad_images, 1)

    @property
    def supervised_share(self) -> float:
        """Of all tokens; 0 where there is none."""
        return self.measures["supervised_tokens"].total / (self.measures["tokens"].total or 1)

    def merge(self, other: "SourceStatistics") -> None:
        """Counts all that the other has counted."""
        self.records += other.records
        self.skipped.update(other.skipped)
        self.bad_images += other.bad_images
        self.parts_left_out.update(other.parts_left_out)
        for name, measure in self.measures.items():
            measure.merge(other.measures[name])
        self.image_copies.merge(other.image_copies)
        self.text_copies.merge(other.text_copies)
        self.languages.update(other.languages)

    def to_json(self) -> dict[str, Any]:
        """Everything, for `stats.json`."""
        return {
            "records": self.records,
            "good": self.good,
            "skipped": dict(self.skipped.most_common()),
            "skipped_share": self.skipped.total() / max(self.records, 1),
            "parts_left_out": dict(self.parts_left_out.most_common()),
            "supervised_share": self.supervised_share,
            **{name: measure.to_json() for name, measure in self.measures.items()},
            "image_copies": self.image_copies.to_json(),
            "text_copies": self.text_copies.to_json(),
            "languages": dict(self.languages.most_common()),
        }


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads records as a stage does, and counts what they hold."""

    stream: StreamConfig
    render: Render
    image_tokens: int
    """Of an image that takes one slot."""
    size_of: Callable[[bytes], tuple[int, int]]
    """Height and width of an encoded image; raises `ImageError`."""
    storage: Storage
    language: Callable[[str], str] | None = None
    """From a text to its language; None: not asked."""

    def count(self, source: Source, entry: Entry, into: SourceStatistics) -> None:
        """Counts one entry of a source; no pixel is decoded."""
        into.records += 1
        record = source.read(entry)
        fault = record if isinstance(record, Skip) else self._count_record(record, into)
        if fault is not None:
            into.skipped[fault.cause] += 1

    def _count_record(self, record: Record, into: SourceStatistics) -> Skip | None:
        """Counts a record; returns why a run leaves it out, the cause that it would meet first."""
        self._count_text(record, into)
        bad = self._count_images(record, into)
        into.parts_left_out.update(skip.cause for skip in record.left_out)
        rendered = rendered_or_skip(record, self.render)
        if isinstance(rendered, Skip):
            return rendered
        measures = into.measures
        measures["tokens"].add(rendered.length)
        measures["supervised_tokens"].add(supervised_tokens(rendered))
        measures["image_slots"].add(rendered.slots)
        stream = self.stream
        fitting = fit(rendered, stream.row_length, stream.images_per_row, self.image_tokens, stream.overlong)
        if isinstance(fitting, Skip):
            return fitting
        into.parts_left_out.update([CUT] if fitting.length < rendered.length else [])
        fault = next((bad[image] for image in fitting.images if image in bad), None)
        into.bad_images += fault is not None
        return fault

    def _count_text(self, record: Record, into: SourceStatistics) -> None:
        turns = (*record.turns, *([record.rejected] if record.rejected else []))
        texts = [(turn.role, part.text) for turn in turns for part in turn.parts if isinstance(part, TextPart)]
        into.measures["turns"].add(len(record.turns))
        into.text_copies.add(hash_of("\x1f".join(part for text in texts for part in text).encode()))
        words = "\n".join(text for _, text in texts).strip()
        if self.language is not None and words:
            into.languages[self.language(words)] += 1

    def _count_images(self, record: Record, into: SourceStatistics) -> dict[ImagePart, Skip]:
        """Counts the images of a record; returns what is wrong with the bad ones."""
        images = [part for turn in record.turns for part in turn.parts if isinstance(part, ImagePart)]
        into.measures["images"].add(len(images))
        bad: dict[ImagePart, Skip] = {}
        for image in images:
            data = self.storage.read_image(image.source)
            into.image_copies.add(hash_of(data))
            into.measures["image_bytes"].add(len(data))
            try:
                height, width = self.size_of(data)
            except ImageError as error:
                bad[image] = Skip(f"image_{error.cause}", record.key, error.detail)
                continue
            into.measures["image_height"].add(height)
            into.measures["image_width"].add(width)
            into.measures["aspect_ratio"].add(width / height)
        return bad


def supervised_tokens(rendered: RenderedRecord) -> int:
    """Tokens that the loss covers; the first of a segment is never predicted."""
    return sum(int(segment.supervised[1:].sum()) for segment in rendered.segments)
