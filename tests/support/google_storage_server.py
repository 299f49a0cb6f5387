"""As much of Google Cloud Storage's JSON API as reading takes: what an object is, ranges of it, and listings."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(/download)?/storage/v1/b/(\w+)/o/([^/]+)")
LISTING = re.compile(r"/storage/v1/b/(\w+)/o/?")
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class GoogleStorageServer(ThreadingHTTPServer):
    """Holds `objects` by (bucket, name), each with its generation; those that are `forbidden` answer 403."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("localhost", 0), _Handler)
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.forbidden: set[str] = set()
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://localhost:{self.server_port}"

    def put(self, bucket: str, name: str, data: bytes) -> None:
        _, generation = self.objects.get((bucket, name), (b"", 0))
        self.objects[bucket, name] = data, generation + 1


class _Handler(BaseHTTPRequestHandler):
    server: GoogleStorageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.server.requests.append(address.path)
        if (found := OBJECT.fullmatch(address.path)) is not None:
            download, bucket, name = found[1], found[2], unquote(found[3])
            if name in self.server.forbidden:
                self._answer(403, _json({"error": {"code": 403, "message": "no"}}))
            elif (bucket, name) not in self.server.objects:
                self._answer(404, b"")
            elif download:
                self._send_range(*self.server.objects[bucket, name])
            else:
                self._answer(200, _json(self._described(bucket, name)))
        elif (found := LISTING.fullmatch(address.path)) is not None:
            self._answer(200, _json(self._listed(found[1], parse_qs(address.query))))
        else:
            self._answer(404, b"")

    def _described(self, bucket: str, name: str) -> dict[str, str]:
        data, generation = self.server.objects[bucket, name]
        facts = {"bucket": bucket, "name": name, "size": str(len(data)), "generation": str(generation)}
        return {"kind": "storage#object", "updated": "2024-01-01T00:00:00Z", "etag": f"e{generation}"} | facts

    def _listed(self, bucket: str, query: dict[str, list[str]]) -> dict[str, object]:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        items, folders = [], set()
        for held, name in sorted(self.server.objects):
            if held == bucket and name.startswith(prefix):
                below, parted, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                if parted:
                    folders.add(prefix + below + parted)
                else:
                    items.append(self._described(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def _send_range(self, data: bytes, generation: int) -> None:
        start, end = (int(number) for number in RANGE.fullmatch(self.headers["Range"]).groups())
        part = data[start : end + 1]
        self._answer(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@contextmanager
def google_storage_server() -> Iterator[GoogleStorageServer]:
    with GoogleStorageServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
