"""A loopback proxy before a real Hub that fails on demand: what to break, how, how often."""

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
class Answer:
    """What goes back to the client; `sent` bytes of the body, or all of it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    sent: int | None = None


class Drop(Exception):
    """The connection is reset instead of answered."""


Forward = Callable[[], Answer]
# A fault gets the way to the real Hub, and may take it, late, twice or never.
Fault = Callable[[Forward], Answer]


@dataclass
class Proxy:
    """Its address, the requests that it saw, and the faults that wait for theirs."""

    url: str
    seen: list[str] = field(default_factory=list)
    faults: list[tuple[re.Pattern[str], Fault]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def fail(self, request: str, fault: Fault, times: int = 1) -> None:
        """Apply `fault` to the next requests whose "METHOD /path?query" the pattern finds."""
        self.faults += [(re.compile(request), fault)] * times

    def count(self, request: str) -> int:
        """How many requests were seen that the pattern finds."""
        return sum(re.search(request, seen) is not None for seen in self.seen)

    def take(self, request: str) -> Fault | None:
        """The first fault that waits for such a request; it is used up."""
        self.seen.append(request)
        for number, (pattern, _) in enumerate(self.faults):
            if pattern.search(request):
                return self.faults.pop(number)[1]
        return None


def status(code: int, text: str = "", **headers: str) -> Fault:
    """Answer with an error status instead of asking the Hub."""
    told = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda forward: Answer(code, [*told, ("Content-Type", "text/plain")], text.encode())


def reset(forward: Forward) -> Answer:
    """The connection breaks before the Hub heard of the request."""
    raise Drop


def lose_answer(forward: Forward) -> Answer:
    """The Hub does what was asked, and nobody hears of it."""
    forward()
    raise Drop


def cut_short(forward: Forward) -> Answer:
    """Half of the body arrives, then the connection ends."""
    answer = forward()
    answer.sent = len(answer.body) // 2
    return answer


def flip_bit(forward: Forward) -> Answer:
    """The body arrives at full length with one bit changed."""
    answer = forward()
    middle = len(answer.body) // 2
    flipped = bytes([answer.body[middle] ^ 1])
    answer.body = answer.body[:middle] + flipped + answer.body[middle + 1 :]
    return answer


def say(body: bytes) -> Fault:
    """The Hub answers as ever, but with other words."""

    def fault(forward: Forward) -> Answer:
        answer = forward()
        return Answer(200, answer.headers, body)

    return fault


def first(work: Callable[[], object]) -> Fault:
    """Something else happens before the Hub hears of the request."""

    def fault(forward: Forward) -> Answer:
        work()
        return forward()

    return fault


def hang(proxy: Proxy) -> Fault:
    """The request is taken and never answered."""

    def fault(forward: Forward) -> Answer:
        proxy.stopped.wait()
        raise Drop

    return fault


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy before the Hub at `upstream`."""
    target = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            fault = proxy.take(f"{self.command} {self.path}")
            try:
                answer = fault(lambda: self.forward(body)) if fault else self.forward(body)
                self.reply(answer)
            except (Drop, ConnectionError, OSError):
                self.drop()

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

        def forward(self, body: bytes) -> Answer:
            # The Host header stays: the Hub builds its links from it, and they lead here again.
            connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=30)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                return Answer(response.status, response.getheaders(), response.read())
            finally:
                connection.close()

        def reply(self, answer: Answer) -> None:
            self.send_response(answer.status)
            length = str(len(answer.body))
            for name, value in answer.headers:
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
                elif name.lower() == "content-length" and self.command == "HEAD":
                    length = value
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(answer.body[: answer.sent])
            self.wfile.flush()
            if answer.sent is not None:
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
