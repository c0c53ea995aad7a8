"""Waiting for the last steps at the end of training, with progress on standard error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.1


def show_waiting(work: Callable[[], T], waiting: Callable[[], int]) -> T:
    """The result of `work`, with the number of `waiting` steps shown meanwhile in a terminal."""
    if not sys.stderr.isatty() or not waiting():
        return work()
    from rich.console import Console

    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="close-publisher", daemon=True)
    thread.start()
    with Console(stderr=True).status("") as status:
        while thread.is_alive():
            status.update(f"hubmerge: {waiting()} steps to push")
            thread.join(_POLL_S)
    return future.result()
