"""A file of a web server: range requests whose answers say themselves which version they are of."""

import re
from typing import Any, NamedTuple

import fsspec

from data_pipelines.stores.errors import UnreadableError, as_os_errors, status_error
from data_pipelines.stores.remote_object import check_version

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class _Answer(NamedTuple):
    data: bytes
    size: int
    """Of the whole object."""
    version: str


class HttpObject:
    """Reads through the session of fsspec's filesystem, so that its options hold (headers, credentials, proxies)."""

    def __init__(self, filesystem: Any, url: str, request_seconds: float) -> None:
        self._filesystem = filesystem
        self._url = url
        self._seconds = request_seconds
        # A signed address allows GET alone, so the size is not asked for by HEAD.
        first = self._request(0, 1)
        self.size, self.version = first.size, first.version

    def read(self, start: int, end: int) -> bytes:
        answer = self._request(start, end)
        check_version((self.size, self.version), (answer.size, answer.version))
        if len(answer.data) != end - start:
            raise OSError(f"the server gave {len(answer.data)} bytes of {end - start}")
        return answer.data

    def _request(self, start: int, end: int) -> _Answer:
        with as_os_errors(self._url):
            return fsspec.asyn.sync(self._filesystem.loop, self._get, start, end, timeout=self._seconds)

    async def _get(self, start: int, end: int) -> _Answer:
        session = await self._filesystem.set_session()
        options = dict(self._filesystem.kwargs)
        asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        headers = {**options.pop("headers", {}), **asked}
        async with session.get(self._filesystem.encode_url(self._url), headers=headers, **options) as response:
            version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            length, content_range = response.headers.get("Content-Length"), response.headers.get("Content-Range", "")
            if (response.status == 200 and length == "0") or response.status == 416:
                return _Answer(b"", _size_of_refusal(content_range), version)
            if response.status == 200:
                raise UnreadableError(
                    "the server sends the whole file where a range is asked for; it must serve ranges"
                )
            if response.status != 206:
                raise status_error(response.status, f"the server answers {response.status} {response.reason}")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise UnreadableError("the server compresses what it sends, so that ranges mean nothing")
            data = await response.read()
            return _Answer(data, _size_of_range(content_range, start), version)


def _size_of_range(content_range: str, start: int) -> int:
    """The whole size that the `Content-Range` of an answer states; its part must begin where it was asked to."""
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        raise UnreadableError(f"the server states the range {content_range!r}, not its ends and the whole size")
    if int(found[1]) != start:
        raise OSError(f"the server gives the range {content_range!r} where it was asked for byte {start} on")
    return int(found[2])


def _size_of_refusal(content_range: str) -> int:
    """The whole size that an answer without a part states; 0 where it states none, as an empty file's may."""
    stated = content_range.rpartition("/")[2].strip()
    return int(stated) if stated.isdigit() else 0
