"""Documents of OBELICS (https://arxiv.org/abs/2306.16527): images and texts take turns in two lists of one length."""

import hashlib
from typing import Any, ClassVar, Literal

from pydantic import Field

from data_pipelines.quota import Skip
from data_pipelines.sources.conversation import shown
from data_pipelines.sources.document_files import DocumentFilesConfig
from data_pipelines.sources.documents import NamedImage, Piece


class ObelicsConfig(DocumentFilesConfig):
    """Documents `{images: [url or null], texts: [text or null]}`; at each place exactly one of the two is not null.

    No URL is fetched. An image's name is `HASH.EXTENSION`, where HASH is that of its URL in hexadecimal digits, or what
    the document itself names in a third list.
    """

    joint: ClassVar[str] = "\n\n"

    kind: Literal["obelics"] = "obelics"
    image_names: str | None = None
    """Field of a document that lists the images' names, null at the places of texts; null: names are hashes."""
    url_hash: Literal["md5", "sha1", "sha256"] = "sha256"
    """Of the URL in UTF-8."""
    extension: str = Field(default="jpg", pattern=r"^[A-Za-z0-9.]+$")
    """Ends the names that are hashes."""

    def pieces(self, value: dict[str, Any], key: str) -> list[Piece] | Skip:
        lists: list[Any] = [value.get("images"), value.get("texts")]
        if self.image_names is not None:
            lists.append(value.get(self.image_names))
        if not all(isinstance(each, list) and len(each) == len(lists[0]) for each in lists):
            return Skip("lengths_differ", key, f"images, texts (and names) are {', '.join(map(shown, lists))}")
        pieces: list[Piece] = []
        for place, (url, text, *names) in enumerate(zip(*lists, strict=True)):
            if (url is None) == (text is None) or not isinstance(url if text is None else text, str):
                return Skip("not_interleaved", key, f"place {place} has image {shown(url)} and text {shown(text)}")
            name = names[0] if names else ""
            if text is None and not isinstance(name, str):
                return Skip("missing_image_name", key, f"{self.image_names} names {shown(name)} at place {place}")
            pieces.append(text if text is not None else NamedImage(name or self._name(url)))
        return pieces

    def _name(self, url: str) -> str:
        digest = hashlib.new(self.url_hash, url.encode("utf-8", "surrogatepass"), usedforsecurity=False)
        return f"{digest.hexdigest()}.{self.extension}"
