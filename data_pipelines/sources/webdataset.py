"""Image-text pairs in tar shards as img2dataset writes them (LAION, CC3M, CC12M, DataComp, COYO)."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from data_pipelines.permutation import seed_of
from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImagePart, Part, Record, TextPart, Turn
from data_pipelines.sources.filters import FieldFilter, refusal
from data_pipelines.sources.json_object import json_object
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.sources.tar_samples import TarSample
from data_pipelines.sources.tar_walk import UNTOLD, AtHand, TarShardsConfig, TarWalk
from data_pipelines.storage import Storage

_TEXT_LIMIT = 1 << 24

CaptionPlace = Annotated[str, Field(pattern=r"^[a-z0-9.]+(:.+)?$")]


class WebDatasetConfig(TarShardsConfig):
    """Tar shards of image-text pairs: `KEY.jpg|png|webp`, `KEY.txt`, `KEY.json`."""

    kind: Literal["webdataset"] = "webdataset"
    caption: CaptionPlace | Annotated[tuple[CaptionPlace, ...], Field(min_length=1)] = "txt"
    """Which member is the caption: `txt`, or `json:FIELD` for a field of the JSON member; of several the first that a
    sample has."""
    filters: dict[str, FieldFilter] = Field(default={})
    """Bounds on fields of the JSON member (`width`, `height`, `similarity`, `NSFW`, whatever it holds, and
    `aspect_ratio`). What does not pass them is left out and counted as `filtered_FIELD`."""
    images: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions that are images, in order of preference."""
    prompts: tuple[str, ...] = ()
    """What the user says after the image; one is picked by the record's place. None: the image stands alone."""

    def open(self, storage: Storage) -> "WebDatasetSource":
        """Lists the shards.

        Raises:
            FileNotFoundError: a pattern names no shard.
            IndexUnusableError: an index is required and is not there.
        """
        return WebDatasetSource(self, storage)


class _Found(NamedTuple):
    key: str
    image: tuple[int, int]
    captions: tuple[tuple[str, tuple[int, int], bytes | None], ...]
    """Field of a JSON member (empty: the whole member is the caption), where the member is, and its bytes if they are
    at hand."""
    metadata: tuple[int, int] | None


class WebDatasetSource(TarWalk):
    """Walks headers and reads captions; images are only pointed at."""

    def __init__(self, config: WebDatasetConfig, storage: Storage) -> None:
        super().__init__(expand(config.shards), storage, config.index, config.index_cache)
        self._config = config
        self._images = config.images
        places = (config.caption,) if isinstance(config.caption, str) else config.caption
        self._captions = tuple((member, field) for member, _, field in (place.partition(":") for place in places))

    def fingerprint(self) -> dict[str, Any]:
        # A run that has no filters goes on although it began before there were any.
        left_out = UNTOLD if self._config.filters else UNTOLD | {"filters"}
        return self._config.model_dump(mode="json", exclude=set(left_out)) | identity(self.shards, self._storage)

    def record(self, path: str, content: _Found, entry: Entry) -> Record | Skip:
        key = f"{path}:{content.key}"
        unwanted = self._refusal(content, path, key)
        if unwanted is not None:
            return unwanted
        caption = self._caption(content, path, key)
        if isinstance(caption, Skip):
            return caption
        asked: tuple[Part, ...] = (ImagePart(ByteRange(path, *content.image)),)
        if self._config.prompts:
            choice = seed_of("prompt", entry.shard, entry.place) % len(self._config.prompts)
            asked += (TextPart(self._config.prompts[choice]),)
        answer = Turn("assistant", (TextPart(caption),), learn=True)
        return Record(key, (Turn("user", asked, learn=False), answer))

    def _refusal(self, found: _Found, path: str, key: str) -> Skip | None:
        """Why the filters, or what they cannot read, leave a sample out."""
        if not self._config.filters:
            return None
        if found.metadata is None:
            return Skip("missing_metadata", key, "filters are set, but the sample has no member .json")
        metadata = json_object(self._storage.read_range(ByteRange(path, *found.metadata)), key)
        return metadata if isinstance(metadata, Skip) else refusal(self._config.filters, metadata, key)

    def _caption(self, found: _Found, path: str, key: str) -> str | Skip:
        """The first caption that is there, or why the last one is none."""
        text: str | Skip = Skip("missing_caption", key, "no caption")
        for field, place, data in found.captions:
            text = _text(self._storage.read_range(ByteRange(path, *place)) if data is None else data, field, key)
            if not isinstance(text, Skip) or text.cause not in ("missing_caption", "empty_caption"):
                break
        return text

    def content(self, path: str, sample: TarSample, at_hand: AtHand) -> _Found | Skip:
        members = sample.members
        if sample.refusal is not None:
            return Skip(sample.refusal[0], f"{path}:{sample.key}", sample.refusal[1])
        image = metadata = None
        for name in self._images:
            if name in members:
                image = members[name]
                break
        captions = [(field, members[name]) for name, field in self._captions if name in members]
        if image is None or not captions:
            return self._missing(path, sample, image)
        if image[1] == 0:
            return Skip("empty_image", f"{path}:{sample.key}", "the image has no bytes")
        if self._config.filters:
            metadata = members.get("json")
        largest = max([length for _, (_, length) in captions] + ([] if metadata is None else [metadata[1]]))
        if largest > _TEXT_LIMIT:
            return Skip("caption_too_large", f"{path}:{sample.key}", f"{largest} bytes")
        return _Found(sample.key, image, tuple((field, place, at_hand(*place)) for field, place in captions), metadata)

    def _missing(self, path: str, sample: TarSample, image: tuple[int, int] | None) -> Skip:
        key, held = f"{path}:{sample.key}", f"the sample holds only {', '.join(sample.members)}"
        if image is None:
            return Skip("missing_image", key, held)
        wanted = " or ".join(f".{name}" for name in dict(self._captions))
        return Skip("missing_caption", key, f"no member {wanted}; {held}")


def _text(data: bytes, field: str, key: str) -> str | Skip:
    """Returns the caption, stripped, from a text member or from a field of a JSON member."""
    if field:
        value = json_object(data, key)
        if isinstance(value, Skip):
            return value
        named = value.get(field)
        if named is None:
            return Skip("missing_caption", key, f"the JSON member has no {field!r}")
        if not isinstance(named, str):
            return Skip("not_text", key, f"{field!r} is a {type(named).__name__}")
        text = named
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return Skip("not_utf8", key, str(error))
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
