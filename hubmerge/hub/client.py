"""A Hub and how it is asked: a deadline on every call, retries where they are safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.utils import logging
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubmerge.errors import HubUnreachable
from hubmerge.hub.client_errors import as_ours, wait_out

T = TypeVar("T")

_PAUSES_S = (0.5, 1.0, 2.0)
# Slowest line on which an upload or a download still counts as alive.
_BYTES_PER_S = 100_000


def _client() -> httpx2.Client:
    """huggingface_hub's own client waits for ever; ours gives up on a silent server.

    All threads share it, and huggingface_hub closes it when one of them finds nobody listening;
    another would lose its answer halfway. Dropped instead, it goes with its last user.
    """
    client = default_client_factory()
    client.timeout = httpx2.Timeout(30.0, connect=10.0)
    client.close = lambda: None  # type: ignore[method-assign]
    return client


set_client_factory(_client)
disable_progress_bars()
logging.set_verbosity_error()  # type: ignore[no-untyped-call]
# A Hub without a Xet write side makes huggingface_hub fail instead of falling back to LFS.
constants.HF_HUB_DISABLE_XET = True


@dataclass(frozen=True)
class Hub:
    """One Hub: where it is, who asks, the cache folder of what was fetched from it, its name.

    `deadline_s` is the most that one question may take, its retries included; moving bytes takes
    longer by their size.
    """

    endpoint: str
    token: str | None = field(repr=False)
    cache: Path
    name: str
    deadline_s: float = 60.0

    @cached_property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token or False)

    def ask(self, what: str, question: Callable[[HfApi], T], *, size: int = 0) -> T:
        """Ask what may safely be asked twice: passing failures are retried.

        `what` completes "while ..." in the error, `size` is the bytes to be moved. Raises
        HubUnreachable, NotOnHub, NoAccess or HubError.
        """
        end = self._end(size)
        for pause_s in _PAUSES_S:
            try:
                return self._ask(what, question, end)
            except HubUnreachable as error:
                wait_out(error, pause_s, at_most_s=end - time.monotonic())
        return self._ask(what, question, end)

    def ask_once(self, what: str, question: Callable[[HfApi], T], *, size: int = 0) -> T:
        """Ask what must not be repeated blindly, such as a commit, or what the client repeats
        by itself: uploads and whatever comes in pages.
        """
        return self._ask(what, question, self._end(size))

    def _end(self, size: int) -> float:
        return time.monotonic() + self.deadline_s + size / _BYTES_PER_S

    def _ask(self, what: str, question: Callable[[HfApi], T], end: float) -> T:
        try:
            return _within(end - time.monotonic(), lambda: question(self.api))
        except Exception as error:
            raise as_ours(error, what, self.name, self.token) from error


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or TimeoutError after `seconds` of wall clock.

    Socket timeouts alone let a server that sends one byte now and then hold a call for ever; the
    abandoned thread ends with its socket.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name="hub-call").start()
    return answer.result(timeout=seconds)
