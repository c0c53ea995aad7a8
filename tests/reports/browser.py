"""A browser that a test can ask: Chromium without a window, spoken to through two pipes."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page, of a given size. `problems` are what its console complained of."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = os.fdopen(send, "wb", buffering=0)
        self._receive = os.fdopen(receive, "rb")
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its answer."""
        number = next(self._numbers)
        said: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            said["sessionId"] = self._session
        self._send.write(json.dumps(said).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False,
             script: bool = True, motion: bool = True) -> None:  # fmt: skip
        """Show a file as on a screen of that size."""
        self._events.clear()
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=mobile)  # fmt: skip
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"},
        ]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def tell(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True,
                          awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def click(self, selector: str) -> None:
        """Click at the middle of the first element of a selector, as a mouse does."""
        x, y = self.middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, x: float, y: float) -> None:
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def middle(self, selector: str) -> tuple[float, float]:
        """Where an element is, once it was scrolled to."""
        box = self.tell(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        return box[0], box[1]

    def picture(self, target: Path, whole: bool = True) -> None:
        """Write what is seen, or the whole page, as a PNG."""
        drawn = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(drawn["data"]))

    @property
    def problems(self) -> list[str]:
        """Errors of the script, and what the page's policy refused."""
        return [
            json.dumps(event["params"])
            for event in self._events
            if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
        ]

    @property
    def fetched(self) -> list[str]:
        """Every address that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def _read(self) -> dict[str, Any]:
        said = bytearray()
        while (letter := self._receive.read(1)) != b"\0":
            assert letter, "the browser is gone"
            said += letter
        return dict(json.loads(said))


@contextmanager
def browsing(home: Path) -> Iterator[Browser]:
    """A browser with an empty home, for as long as the block runs."""
    assert CHROMIUM
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    # The browser reads commands from its third pipe and answers in its fourth.
    program = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *("--hide-scrollbars", "--no-first-run", "--disable-background-networking"),
        f"--user-data-dir={home}",
    ]
    process = subprocess.Popen(
        ["bash", "-c", program, CHROMIUM, *options],
        pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(send, receive)
    finally:
        process.terminate()
        process.wait(timeout=20)
