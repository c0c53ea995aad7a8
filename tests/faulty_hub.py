"""The embedded Hub in this process, with a fault plan and a clock that a test sets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from huggingface_hub import HfApi
from starlette.types import ASGIApp, Receive, Scope, Send

from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Clock
from hubmerge.server.app import build_app
from hubmerge.server.faults import Fault, FaultMiddleware
from hubmerge.server.process import TINY_CLIP_FOLDER, _listen
from hubmerge.server.tokens import Tokens


@dataclass
class FakeClock:
    """A clock whose waits end at once, and which remembers them; `at_wait` runs in each."""

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    at_wait: list[threading.Event] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        """The clock for a publisher."""
        return Clock(lambda: self.seconds, self._wait)

    def _wait(self, event: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        if self.at_wait:  # training ends during this wait
            self.at_wait.pop().set()
            event.wait()
        else:
            self.seconds += seconds


class FaultyHub:
    """A Hub for tests: its address, data folder and token, and its requests since `plan`."""

    def __init__(self, app: ASGIApp, data: Path) -> None:
        self._app, self.data, self.url = app, data, ""
        self.token = Tokens(data).create("me", "write")
        self.clock = FakeClock()
        self.plan()

    def plan(self, *faults: Fault) -> None:
        """Serve with these faults from now on, none by default."""
        self.requests: list[str] = []
        self._faulty = FaultMiddleware(self._app, faults, lambda: self.clock.seconds)

    def count(self, text: str) -> int:
        """The number of requests since `plan` with this text in "METHOD /path"."""
        return sum(text in request for request in self.requests)

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.url, token=self.token)

    def hub(self, cache: Path) -> Hub:
        """A connection to it."""
        return Hub(self.url, lambda: self.token, cache, "the test Hub")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.requests.append(f"{scope['method']} {scope['path']}")
        await self._faulty(scope, receive, send)


@contextmanager
def serve_faulty_hub(data: Path, with_base: bool = False) -> Iterator[FaultyHub]:
    """Serve a Hub on a port of its own while the block runs; it may have the base of examples."""
    hub = FaultyHub(build_app(data, TINY_CLIP_FOLDER if with_base else None), data)
    server = uvicorn.Server(uvicorn.Config(hub, log_level="error", lifespan="off"))
    with _listen(0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield hub
        server.force_exit = server.should_exit = True
        thread.join()
