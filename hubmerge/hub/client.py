"""Calls to a Hub: a deadline on every call, retries where they are safe.

A part of the client library is imported when it is first used, as `huggingface_hub.NAME`. All that
a call needs takes a quarter of a second to import, so a file that a merge of local folders imports
takes no names from the library at its top level.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import huggingface_hub.utils

from hubmerge.errors import HubUnreachable
from hubmerge.hub.client_errors import to_hubmerge_error, wait_before_retry

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

_RETRY_DELAYS_S = (0.5, 1.0, 2.0)
# A transfer that is slower than this counts as dead.
_MIN_BYTES_PER_S = 100_000


@dataclass(frozen=True)
class Hub:
    """One Hub: its endpoint, the user's token, the folder of its cache, and its name in messages.

    `sign_in` returns the token, None without one, or raises HubmergeError; the first call needs it.
    `deadline_s` is the longest that one call may take, retries included. Transfers get more time,
    by their size. `step_pattern` finds the step in the names of revisions and folders, in its first
    group, where the usual names do not fit. The embedded Hub reads a file at many commits at once.
    """

    endpoint: str
    sign_in: Callable[[], str | None] = field(repr=False)
    cache: Path
    name: str
    deadline_s: float = 60.0
    step_pattern: re.Pattern[str] | None = None
    is_embedded: bool = False

    @cached_property
    def token(self) -> str | None:
        return self.sign_in()

    @cached_property
    def api(self) -> HfApi:
        from hubmerge.hub.http_client import make_api

        return make_api(self.endpoint, self.token, self.is_embedded)

    @property
    def is_offline(self) -> bool:
        """Whether HF_HUB_OFFLINE forbids to ask this Hub; the embedded one needs no network."""
        return not self.is_embedded and bool(huggingface_hub.constants.is_offline_mode())

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request that is not made by `api`."""
        build = huggingface_hub.utils.build_hf_headers  # type: ignore[attr-defined]
        return dict(build(token=self.token or False))

    def list_pages(self, path: str, params: Mapping[str, Any]) -> Iterator[Any]:
        """The items of a list below /api; a page is requested when its first item is read."""
        paginate = huggingface_hub.utils.paginate  # type: ignore[attr-defined]
        return iter(paginate(f"{self.endpoint}/api/{path}", dict(params), self.headers))

    def call(self, action: str, request: Callable[[HfApi], T], *, size: int = 0) -> T:
        """Make a call that is safe to repeat: transient failures are retried.

        `action` is named in the error ("reading o/model"), `size` is the number of bytes to be
        transferred. Raises HubUnreachable, HubOffline, NotOnHub, NoAccess or HubError.
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
        api = self.api
        try:
            return _run_with_timeout(deadline - time.monotonic(), lambda: request(api))
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
