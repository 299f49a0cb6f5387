"""Image-text pairs in tar shards as img2dataset writes them (LAION, CC3M, CC12M, DataComp, COYO)."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from data_pipelines.config_class import Config
from data_pipelines.permutation import seed_of
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, Part, Record, TextPart, Turn
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.sources.tar_headers import Break
from data_pipelines.sources.tar_samples import TarSample, samples
from data_pipelines.sources.walk_cache import WalkCache
from data_pipelines.storage import Storage

_TEXT_LIMIT = 1 << 24


class WebDatasetConfig(Config):
    """Tar shards of image-text pairs: `KEY.jpg|png|webp`, `KEY.txt`, `KEY.json`."""

    kind: Literal["webdataset"] = "webdataset"
    shards: str | tuple[str, ...]
    """Brace ranges (`train/{00000..00099}.tar`), globs or a list; local paths or any fsspec address."""
    caption: Annotated[str, Field(pattern=r"^[a-z0-9.]+(:.+)?$")] = "txt"
    """Which member is the caption: `txt`, or `json:FIELD` for a field of the JSON member."""
    images: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions that are images, in order of preference."""
    prompts: tuple[str, ...] = ()
    """What the user says after the image; one is picked by the record's place. None: the image stands alone."""

    def open(self, storage: Storage) -> "WebDatasetSource":
        """Lists the shards.

        Raises:
            FileNotFoundError: a pattern names no shard.
        """
        return WebDatasetSource(self, storage)


class _Found(NamedTuple):
    key: str
    image: tuple[int, int]
    caption: tuple[int, int]


class WebDatasetSource:
    """Walks headers and reads captions; images are only pointed at."""

    def __init__(self, config: WebDatasetConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self._member, _, self._field = config.caption.partition(":")
        self._walks = WalkCache()
        self.shards = expand(config.shards)

    def fingerprint(self) -> dict[str, Any]:
        described = self._config.model_dump(mode="json", exclude={"shards"})
        return described | identity(self.shards, self._storage)

    def count(self, shard: int) -> int | None:
        return None

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        return self._walks.walk(shard, place, self._walk)

    def locate(self, shard: int, place: int) -> Entry:
        entry = next(self.walk(shard, place), None)
        if entry is None:
            raise ValueError(f"{self.shards[shard]} holds nothing at byte {place} any more: the shard was rewritten.")
        return entry

    def read(self, entry: Entry) -> Record | Skip:
        found = entry.content
        if isinstance(found, Skip):
            return found
        path = self.shards[entry.shard]
        key = f"{path}:{found.key}"
        caption = _text(self._storage.read_range(ByteRange(path, *found.caption)), self._field, key)
        if isinstance(caption, Skip):
            return caption
        asked: tuple[Part, ...] = (ImagePart(ByteRange(path, *found.image)),)
        if self._config.prompts:
            choice = seed_of("prompt", entry.shard, entry.place) % len(self._config.prompts)
            asked += (TextPart(self._config.prompts[choice]),)
        answer = Turn("assistant", (TextPart(caption),), learn=True)
        return Record(key, (Turn("user", asked, learn=False), answer))

    def _walk(self, shard: int, place: int) -> Iterator[Entry]:
        path = self.shards[shard]
        size = self._storage.size(path)
        if place > size:
            return
        for sample in samples(partial(self._storage.read, path), size, place):
            if isinstance(sample, Break):
                # Past the end, so that a walk resumed after the break does not meet it again.
                yield Entry(shard, sample.begin, size + 1, Skip(sample.cause, f"{path}@{sample.begin}", sample.detail))
                continue
            content = self._content(path, sample)
            # What a broken tar took from its last sample is counted with the break, once.
            if not (sample.at_break and isinstance(content, Skip)):
                yield Entry(shard, sample.place, sample.following, content)

    def _content(self, path: str, sample: TarSample) -> _Found | Skip:
        key = f"{path}:{sample.key}"
        if sample.refusal is not None:
            return Skip(sample.refusal[0], key, sample.refusal[1])
        held = ", ".join(sample.members)
        image = next((sample.members[name] for name in self._config.images if name in sample.members), None)
        if image is None:
            return Skip("missing_image", key, f"the sample holds only {held}")
        caption = sample.members.get(self._member)
        if caption is None:
            return Skip("missing_caption", key, f"no member .{self._member}; the sample holds only {held}")
        if image[1] == 0:
            return Skip("empty_image", key, "the image has no bytes")
        if caption[1] > _TEXT_LIMIT:
            return Skip("caption_too_large", key, f"{caption[1]} bytes")
        return _Found(sample.key, image, caption)


def _text(data: bytes, field: str, key: str) -> str | Skip:
    """Returns the caption, stripped, from a text member or from a field of a JSON member."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Skip("not_utf8", key, str(error))
    if field:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return Skip("bad_json", key, str(error))
        if not isinstance(value, dict):
            return Skip("not_an_object", key, f"the JSON member is a {type(value).__name__}")
        named = value.get(field)
        if named is None:
            return Skip("missing_caption", key, f"the JSON member has no {field!r}")
        if not isinstance(named, str):
            return Skip("not_text", key, f"{field!r} is a {type(named).__name__}")
        text = named
    text = text.strip()
    if not text:
        return Skip("empty_caption", key, "nothing but white space")
    return text if encodable(text) else Skip("not_utf8", key, "a lone surrogate")


def encodable(text: str) -> bool:
    """Whether text holds no lone surrogate, which JSON can write and no tokenizer can read."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
