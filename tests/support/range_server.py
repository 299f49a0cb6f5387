"""A web server of byte ranges that stumbles when it is told to."""

import re
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from threading import Lock, Thread
from urllib.parse import unquote

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class RangeServer(ThreadingHTTPServer):
    """Serves `files`; the next answers have the `faults` that are put into the list, one each.

    A fault is a status, "reset" (the connection breaks off), "short" (the body ends too early), "slow" (it waits before
    it answers), "whole" (the range is not looked at) or "shifted" (another range than the one asked for).
    """

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("localhost", 0), _Handler)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            # The handshake is left to the thread of the request, so that a client that refuses it stops no other.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.faults: list[int | str] = []
        self.slow_seconds = 0.3
        self.requests: list[tuple[str, int, int]] = []
        self.lock = Lock()

    def address(self, name: str) -> str:
        return f"{self._scheme}://localhost:{self.server_port}/{name}"

    def asked(self) -> Counter[tuple[str, int, int]]:
        """How often each (name, start, end) was asked for, end exclusive; the first byte alone is left out."""
        with self.lock:
            return Counter(request for request in self.requests if request[1:] != (0, 1))

    def handle_error(self, request, client_address) -> None:
        """Clients that leave are no news."""


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        whole = self.server.files[self.path.removeprefix("/")]
        self._answer(200, whole, {"ETag": f'"{self.server.versions.get(self.path.removeprefix("/"), "1")}"'}, 0)

    def do_GET(self) -> None:
        name = unquote(self.path.partition("?")[0]).removeprefix("/")
        start, end = (int(number) for number in RANGE.fullmatch(self.headers["Range"]).groups())
        with self.server.lock:
            self.server.requests.append((name, start, end + 1))
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "slow":
            time.sleep(self.server.slow_seconds)
        if fault == "reset":
            self.close_connection = True
            self.connection.shutdown(SHUT_RDWR)
        elif isinstance(fault, int):
            self._answer(fault, b"no", {})
        elif name not in self.server.files:
            self._answer(404, b"none", {})
        else:
            self._file(name, start, end, fault)

    def _file(self, name: str, start: int, end: int, fault: str | None) -> None:
        whole = self.server.files[name]
        headers = {"ETag": f'"{self.server.versions.get(name, "1")}"'}
        if fault == "whole":
            return self._answer(200, whole, headers)
        if start >= len(whole):
            return self._answer(416, b"", headers | {"Content-Range": f"bytes */{len(whole)}"})
        start += fault == "shifted"
        data = whole[start : end + 1]
        headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{len(whole)}"
        self._answer(206, data, headers, len(data) // 2 if fault == "short" else len(data))
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        if sent is not None and sent < len(body) and self.command == "GET":
            self.close_connection = True


@contextmanager
def range_server(tls: ssl.SSLContext | None = None) -> Iterator[RangeServer]:
    with RangeServer(tls) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
