"""Files of interleaved documents: JSON(L), or tars that hold a document and its images under one key."""

from abc import abstractmethod
from typing import Any, NamedTuple

from data_pipelines.quota import Skip
from data_pipelines.record import ByteRange, ImageSource, Record
from data_pipelines.sources.documents import DocumentOptions, NamedImage, Piece, record_of
from data_pipelines.sources.image_places import open_images
from data_pipelines.sources.json_files import JsonFiles, JsonFilesConfig
from data_pipelines.sources.json_index import RECORD_LIMIT
from data_pipelines.sources.json_object import json_object
from data_pipelines.sources.shard_list import expand, identity
from data_pipelines.sources.source import Entry
from data_pipelines.sources.tar_samples import TarSample
from data_pipelines.sources.tar_walk import AtHand, TarWalk
from data_pipelines.storage import Storage


class DocumentFilesConfig(JsonFilesConfig, DocumentOptions):
    """Where documents and their images are, and what is kept of them; each kind of document has a `kind` besides.

    `files` that end in .tar are shards, local or remote: a document is `KEY.json`, and an image that it names NAME is
    `KEY.NAME` beside it, or else where `images` or `image_shards` say. Nothing is ever fetched from the web.
    """

    @abstractmethod
    def pieces(self, value: dict[str, Any], key: str) -> list[Piece] | Skip:
        """Returns the texts and images of a JSON object in their order, or why they cannot be told."""

    def open(self, storage: Storage) -> "JsonDocuments | TarDocuments":
        """Lists the shards, or indexes the JSON files.

        Raises:
            FileNotFoundError: a file, the image folder or an image tar is not there.
            ValueError: some of the files are tars and some are not.
        """
        paths = expand(self.files, "files")
        tars = [path for path in paths if path.endswith(".tar")]
        if tars and len(tars) < len(paths):
            other = next(path for path in paths if not path.endswith(".tar"))
            raise ValueError(f"files names both tars and others ({tars[0]}, {other}); make two sources of them")
        return TarDocuments(self, storage) if tars else JsonDocuments(self, storage)

    @property
    def kept(self) -> dict[str, Any]:
        """All that records depend on besides the files, as JSON."""
        return self.model_dump(mode="json", exclude=set(JsonFilesConfig.model_fields))


class JsonDocuments(JsonFiles):
    """Documents that are elements of a JSON array or lines of a JSONL file."""

    def __init__(self, config: DocumentFilesConfig, storage: Storage) -> None:
        super().__init__(config, storage)
        self._documents = config

    def fingerprint(self) -> dict[str, Any]:
        return self._documents.kept | super().fingerprint()

    def record(self, value: dict[str, Any], key: str) -> Record | Skip:
        pieces = self._documents.pieces(value, key)
        if isinstance(pieces, Skip):
            return pieces
        return record_of(pieces, self._documents, key, lambda image: self._places.find(image.name, key))


class _Found(NamedTuple):
    """A document in a tar."""

    key: str
    document: tuple[int, int]
    members: dict[str, tuple[int, int]]


class TarDocuments(TarWalk):
    """Documents that are members of tars, with or without their images beside them."""

    def __init__(self, config: DocumentFilesConfig, storage: Storage) -> None:
        super().__init__(expand(config.files, "files"), storage)
        self._config = config
        self._image_shards = expand(config.image_shards, "image_shards") if config.image_shards else ()
        self._places = open_images(config.images, self._image_shards, storage)

    def fingerprint(self) -> dict[str, Any]:
        described = self._config.kept | identity(self.shards, self._storage)
        return described | ({"images": identity(self._image_shards, self._storage)} if self._image_shards else {})

    def content(self, path: str, sample: TarSample, at_hand: AtHand) -> _Found | Skip:
        key = f"{path}:{sample.key}"
        if sample.refusal is not None:
            return Skip(sample.refusal[0], key, sample.refusal[1])
        document = sample.members.get("json")
        if document is None:
            return Skip("missing_document", key, f"no member .json; the sample holds only {', '.join(sample.members)}")
        if document[1] > RECORD_LIMIT:
            return Skip("record_too_large", key, f"{document[1]} bytes")
        return _Found(sample.key, document, sample.members)

    def record(self, path: str, content: _Found, entry: Entry) -> Record | Skip:
        key = f"{path}:{content.key}"
        value = json_object(self._storage.read_range(ByteRange(path, *content.document)), key)
        pieces = value if isinstance(value, Skip) else self._config.pieces(value, key)
        if isinstance(pieces, Skip):
            return pieces

        def find(image: NamedImage) -> ImageSource | Skip:
            beside = image.name.removeprefix(content.key.rpartition("/")[2] + ".").lower()
            if beside == "json" or beside not in content.members:
                return self._places.find(image.name, key)
            offset, size = content.members[beside]
            return ByteRange(path, offset, size) if size else Skip("empty_image", key, f"{image.name!r} has no bytes")

        return record_of(pieces, self._config, key, find)
