"""A loopback proxy in front of a real Hub that fails on demand: which request, how, how often."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Response:
    """The response for the client; only `sent` bytes of the body are sent if that is given."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    sent: int | None = None


class ConnectionDropped(Exception):
    """The connection is reset without a response."""


Forward = Callable[[], Response]
# A fault may call the real Hub through `forward`: late, twice or never.
Fault = Callable[[Forward], Response]


@dataclass
class Proxy:
    """The proxy's URL, the requests so far, and the faults for the next requests."""

    url: str
    requests: list[str] = field(default_factory=list)
    faults: list[tuple[re.Pattern[str], Fault]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def fail(self, request: str, fault: Fault, times: int = 1) -> None:
        """Apply `fault` to the next requests whose "METHOD /path?query" matches the pattern."""
        self.faults += [(re.compile(request), fault)] * times

    def count(self, request: str) -> int:
        """The number of requests so far that match the pattern."""
        return sum(re.search(request, past) is not None for past in self.requests)

    def next_fault(self, request: str) -> Fault | None:
        """Record the request, and remove and return the first fault for it."""
        self.requests.append(request)
        for index, (pattern, _) in enumerate(self.faults):
            if pattern.search(request):
                return self.faults.pop(index)[1]
        return None


def status(code: int, text: str = "", **headers: str) -> Fault:
    """Respond with an error status, without the Hub."""
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda forward: Response(code, [*fields, ("Content-Type", "text/plain")], text.encode())


def reset_connection(forward: Forward) -> Response:
    """The connection breaks before the request reaches the Hub."""
    raise ConnectionDropped


def lose_response(forward: Forward) -> Response:
    """The Hub executes the request, but the response is lost."""
    forward()
    raise ConnectionDropped


def cut_short(forward: Forward) -> Response:
    """Half of the body arrives, then the connection ends."""
    response = forward()
    response.sent = len(response.body) // 2
    return response


def flip_bit(forward: Forward) -> Response:
    """The body arrives at full length with one bit changed."""
    response = forward()
    middle = len(response.body) // 2
    flipped = bytes([response.body[middle] ^ 1])
    response.body = response.body[:middle] + flipped + response.body[middle + 1 :]
    return response


def replace_body(body: bytes) -> Fault:
    """The Hub responds as usual, but with another body."""

    def fault(forward: Forward) -> Response:
        response = forward()
        return Response(200, response.headers, body)

    return fault


def run_first(action: Callable[[], object]) -> Fault:
    """Run `action` before the request reaches the Hub."""

    def fault(forward: Forward) -> Response:
        action()
        return forward()

    return fault


def hang(proxy: Proxy) -> Fault:
    """The request is accepted and never answered."""

    def fault(forward: Forward) -> Response:
        proxy.stopped.wait()
        raise ConnectionDropped

    return fault


@contextmanager
def run_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of the Hub at `upstream`."""
    target = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            fault = proxy.next_fault(f"{self.command} {self.path}")
            try:
                response = fault(lambda: self.forward(body)) if fault else self.forward(body)
                self.reply(response)
            except (ConnectionDropped, ConnectionError, OSError):
                self.drop()

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

        def forward(self, body: bytes) -> Response:
            # The Host header is kept: the Hub builds its links from it, so they lead to this proxy.
            connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=30)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                upstream = connection.getresponse()
                return Response(upstream.status, upstream.getheaders(), upstream.read())
            finally:
                connection.close()

        def reply(self, response: Response) -> None:
            self.send_response(response.status)
            length = str(len(response.body))
            for name, value in response.headers:
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
                elif name.lower() == "content-length" and self.command == "HEAD":
                    length = value
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(response.body[: response.sent])
            self.wfile.flush()
            if response.sent is not None:
                self.close_connection = True

        def drop(self) -> None:
            self.close_connection = True
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

        def finish(self) -> None:
            if self.connection.fileno() >= 0:
                super().finish()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield proxy
    proxy.stopped.set()
    server.shutdown()
    server.server_close()
