"""Calls to a Hub: a deadline on every call, retries where they are safe."""

from __future__ import annotations

import re
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
from hubmerge.hub.client_errors import to_hubmerge_error, wait_before_retry

T = TypeVar("T")

_RETRY_DELAYS_S = (0.5, 1.0, 2.0)
# A transfer that is slower than this counts as dead.
_MIN_BYTES_PER_S = 100_000


def _make_http_client() -> httpx2.Client:
    """An HTTP client with timeouts; huggingface_hub's own client waits for ever.

    All threads share one client, and huggingface_hub closes it after a refused connection in any
    of them, which would cut off the responses of the others. So `close` does nothing: the client is
    freed with its last user.
    """
    client = default_client_factory()
    client.timeout = httpx2.Timeout(30.0, connect=10.0)
    client.close = lambda: None  # type: ignore[method-assign]
    return client


set_client_factory(_make_http_client)
disable_progress_bars()
logging.set_verbosity_error()  # type: ignore[no-untyped-call]
# A Hub without a Xet write side makes huggingface_hub fail instead of falling back to LFS.
constants.HF_HUB_DISABLE_XET = True


@dataclass(frozen=True)
class Hub:
    """One Hub: its endpoint, the user's token, the folder of its cache, and its name in messages.

    `deadline_s` is the longest that one call may take, retries included. Transfers get more time,
    by their size. `step_pattern` finds the step in the names of revisions and folders, in its first
    group, where the usual names do not fit.
    """

    endpoint: str
    token: str | None = field(repr=False)
    cache: Path
    name: str
    deadline_s: float = 60.0
    step_pattern: re.Pattern[str] | None = None

    @cached_property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token or False)

    def call(self, action: str, request: Callable[[HfApi], T], *, size: int = 0) -> T:
        """Make a call that is safe to repeat: transient failures are retried.

        `action` is named in the error ("reading o/model"), `size` is the number of bytes to be
        transferred. Raises HubUnreachable, NotOnHub, NoAccess or HubError.
        """
        deadline = self._deadline(size)
        for delay_s in _RETRY_DELAYS_S:
            try:
                return self._call_before(action, request, deadline)
            except HubUnreachable as error:
                wait_before_retry(error, delay_s, max_delay_s=deadline - time.monotonic())
        return self._call_before(action, request, deadline)

    def call_once(self, action: str, request: Callable[[HfApi], T], *, size: int = 0) -> T:
        """Make a call without retries: one that is not safe to repeat, such as a commit, or one
        that the client retries by itself, such as an upload or a list in pages.
        """
        return self._call_before(action, request, self._deadline(size))

    def _deadline(self, size: int) -> float:
        return time.monotonic() + self.deadline_s + size / _MIN_BYTES_PER_S

    def _call_before(self, action: str, request: Callable[[HfApi], T], deadline: float) -> T:
        try:
            return _run_with_timeout(deadline - time.monotonic(), lambda: request(self.api))
        except Exception as error:
            raise to_hubmerge_error(error, action, self.name, self.token) from error


def _run_with_timeout(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; raises TimeoutError after `seconds` of wall clock.

    Socket timeouts are not enough: a server that sends one byte now and then could hold a call for
    ever. The abandoned thread ends with its socket.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="hub-call").start()
    return future.result(timeout=seconds)
