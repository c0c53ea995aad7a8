"""A headless Chromium for tests, controlled with the DevTools protocol through two pipes."""

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
    """A browser with one page. `problems` are the errors of its console."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = os.fdopen(send, "wb", buffering=0)
        self._receive = os.fdopen(receive, "rb")
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = self.send_command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send_command("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send_command(f"{domain}.enable")

    def send_command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its response."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        while (response := self._read()).get("id") != number:
            self._events.append(response)
        assert "error" not in response, response
        return dict(response["result"])

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False,
             script: bool = True, motion: bool = True) -> None:  # fmt: skip
        """Open a file on a screen of this size, in pixels."""
        self._events.clear()
        mobile = width < 600
        self.send_command("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=mobile)  # fmt: skip
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"},
        ]
        self.send_command("Emulation.setEmulatedMedia", features=features)
        self.send_command("Emulation.setScriptExecutionDisabled", value=not script)
        self.send_command("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        response = self.send_command("Runtime.evaluate", expression=expression, returnByValue=True,
                          awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send_command("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def click(self, selector: str) -> None:
        """Click at the centre of the first element that matches, with mouse events."""
        x, y = self.middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send_command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    def hover(self, x: float, y: float) -> None:
        self.send_command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def middle(self, selector: str) -> tuple[float, float]:
        """The centre of an element after scrolling to it."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        return box[0], box[1]

    def screenshot(self, target: Path, whole: bool = True) -> None:
        """Write the viewport, or the whole page, as a PNG."""
        response = self.send_command("Page.captureScreenshot", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(response["data"]))

    @property
    def problems(self) -> list[str]:
        """Errors of the script, and violations of the content security policy."""
        return [
            json.dumps(event["params"])
            for event in self._events
            if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
        ]

    @property
    def requested_urls(self) -> list[str]:
        """Every URL that the page requested."""
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser has exited"
            message += byte
        return dict(json.loads(message))


@contextmanager
def open_browser(home: Path) -> Iterator[Browser]:
    """A browser with an empty home folder, for the duration of the block."""
    assert CHROMIUM
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    # The browser reads commands from file descriptor 3 and writes responses to 4.
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
