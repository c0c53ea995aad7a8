"""A Hub and how it is asked: a deadline on every call, retries where safe, plain errors."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging
from huggingface_hub.utils._http import hf_request_event_hook
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubmerge.errors import HubError, HubmergeError, HubUnreachable, NoAccess, NotOnHub

T = TypeVar("T")

DEADLINE_S = 60.0
PAUSES_S = (0.5, 1.0, 2.0)
# Slowest line on which an upload or a download still counts as alive.
BYTES_PER_S = 100_000
_PASSING = {408, 425, 429, 500, 502, 503, 504}


def _client() -> httpx2.Client:
    """huggingface_hub's own client waits for ever; ours gives up on a silent server."""
    return httpx2.Client(
        event_hooks={"request": [hf_request_event_hook]},
        follow_redirects=True,
        timeout=httpx2.Timeout(30.0, connect=10.0),
    )


set_client_factory(_client)
disable_progress_bars()
logging.set_verbosity_error()  # type: ignore[no-untyped-call]
# A Hub without a Xet write side makes huggingface_hub fail instead of falling back to LFS.
constants.HF_HUB_DISABLE_XET = True


@dataclass(frozen=True)
class Hub:
    """One Hub: where it is, who asks, and the cache folder of what was fetched from it."""

    endpoint: str
    token: str | None = field(repr=False)
    cache: Path
    name: str

    @cached_property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token or False)

    def ask(
        self, what: str, question: Callable[[HfApi], T], *, deadline_s: float = DEADLINE_S
    ) -> T:
        """Ask something that may safely be asked twice; passing failures are retried.

        `what` completes "while ..." in the error. Raises HubUnreachable, NotOnHub, NoAccess or
        HubError.
        """
        for pause in (*PAUSES_S, None):
            try:
                return self.ask_once(what, question, deadline_s=deadline_s)
            except HubUnreachable:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("the last pause is None")

    def ask_once(
        self, what: str, question: Callable[[HfApi], T], *, deadline_s: float = DEADLINE_S
    ) -> T:
        """Ask something that must not be repeated blindly, such as a commit."""
        try:
            return within(deadline_s, lambda: question(self.api))
        except HubmergeError:
            raise
        except Exception as error:
            raise self._told(what, error) from error

    def _told(self, what: str, error: Exception) -> Exception:
        """What the client library raised, as one of our errors; a bug stays as it is."""
        if isinstance(error, GatedRepoError):
            return NoAccess(f"The repository is gated, {what}.", self._how_to_log_in())
        if isinstance(error, LocalEntryNotFoundError) or not isinstance(error, HfHubHTTPError):
            passing = (
                httpx2.TransportError,
                TimeoutError,
                ConnectionError,
                LocalEntryNotFoundError,
            )
            return self._silent(what, error) if isinstance(error, passing) else error
        status = error.response.status_code if error.response is not None else 500
        if isinstance(error, RepositoryNotFoundError):
            hint = "Check the name" + (
                "." if self.token else f"; if private, {self._how_to_log_in()}"
            )
            return NotOnHub(f"{self.name} has no such repository, {what}.", hint)
        if isinstance(error, (RevisionNotFoundError, EntryNotFoundError)):
            return NotOnHub(f"{self.name} has no such revision or file, {what}.")
        if status in _PASSING:
            return self._silent(what, error)
        said = (error.server_message or "no reason given").strip()
        if status in (401, 403):
            return NoAccess(f"{self.name} does not allow it, {what}: {said}", self._how_to_log_in())
        return HubError(f"{self.name} refused (HTTP {status}), {what}: {said}")

    def _silent(self, what: str, error: Exception) -> HubUnreachable:
        status = getattr(getattr(error, "response", None), "status_code", None)
        how = f"HTTP {status}" if status else type(error).__name__
        return HubUnreachable(
            f"{self.name} ({self.endpoint}) does not answer ({how}), {what}.",
            "Nothing is lost: run the same command again, or use --hub local.",
        )

    def _how_to_log_in(self) -> str:
        return "Run `hf auth login` with a token that may write there, or set HF_TOKEN."


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or TimeoutError after `seconds` of wall clock.

    Socket timeouts alone let a server that sends one byte now and then hold a call for ever; the
    abandoned thread ends with its socket.
    """
    answers: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True, name="hub-call").start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # work() returned it


def seconds_for(size: int) -> float:
    """The deadline of moving `size` bytes."""
    return DEADLINE_S + size / BYTES_PER_S
