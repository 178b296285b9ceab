"""A web server on this machine that does what servers and lines do on a bad day, for the tests that fetch from it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """How one request is answered."""

    status: int = 200
    drop_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    ranges: bool = True
    """Whether `Range` is understood."""
    headers: dict[str, str] = field(default_factory=dict)
    silent: float = 0.0
    """Seconds before anything is said."""
    pace: float = 0.0
    """Seconds between two blocks of 16 KiB."""


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None


class Web:
    """What the server holds, how it will answer, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        """For each path the answers to come; when they are used up, all is well."""
        self.requests: list[Request] = []
        self.sent = 0
        """Bytes of bodies."""
        self.url = ""

    def asked(self, path: str) -> list[str | None]:
        """The `Range` of each request for a path."""
        return [request.range for request in self.requests if request.path == path]


class Handler(BaseHTTPRequestHandler):
    web: Web

    def do_GET(self) -> None:
        web = self.web
        web.requests.append(Request(self.path, self.headers.get("Range")))
        waiting = web.answers.get(self.path, [])
        answer = waiting.pop(0) if waiting else Answer()
        time.sleep(answer.silent)
        content = web.files.get(self.path)
        if content is None or answer.status != 200:
            self.send_response(404 if content is None else answer.status)
            for name, value in {"Content-Length": "0", **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        self._send(content, answer)

    def _send(self, content: bytes, answer: Answer) -> None:
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        begin = int(start[1]) if start and answer.ranges else 0
        if begin >= len(content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        body = content[begin:][: answer.drop_after]
        for i in range(0, len(body), 1 << 14):
            block = body[i : i + (1 << 14)]
            self.wfile.write(block)
            self.web.sent += len(block)
            time.sleep(answer.pace)

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def web_server() -> Iterator[Web]:
    """A server on a free port of this machine; `web.url` is its address."""
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"web": web}))
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
