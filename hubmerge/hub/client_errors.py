"""What the client library raises, told as one of our errors, and how long to wait after it."""

from __future__ import annotations

import json
import random
import time

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OIDCError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from hubmerge.errors import HubError, HubmergeError, HubUnreachable, NoAccess, NotOnHub

# What passes: a Hub that is busy or restarts; 409, another commit is under way; 412, the branch
# moved since we read it.
_PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
# No answer, or none that a Hub gives: a gateway's HTML is no JSON, a portal's page has no metadata.
_SILENCE = (
    httpx2.TransportError,
    TimeoutError,
    ConnectionError,
    LocalEntryNotFoundError,
    FileMetadataError,
    json.JSONDecodeError,
)
# The same as a bare OSError or RuntimeError: a body cut short, and a connection pool that another
# thread closed because its own connection failed.
_SILENT_WORDS = ("Consistency check failed", "the client has been closed")

_LOG_IN = "Run `hf auth login` with a token that may write there, or set HF_TOKEN."
_ASK_FOR_ACCESS = "Ask for access on its page, then run `hf auth login` or set HF_TOKEN."
_PROOF = "Give the job `permissions: id-token: write`, or leave HF_OIDC_RESOURCE out."
_LATER = "Nothing is lost: run the same command again, or use --hub local."


def as_ours(error: Exception, what: str, hub: str, token: str | None) -> Exception:
    """An error met while `what`, as one of ours; what no Hub said, such as a bug, stays as it is.

    Whatever the Hub says, the token is not repeated.
    """
    wrapped = (LocalEntryNotFoundError, RuntimeError)
    while isinstance(error, wrapped) and isinstance(error.__cause__, Exception):
        # Downloads wrap whatever went wrong as "not in the cache", uploads as a bare RuntimeError.
        error = error.__cause__
    if _is_silence(error):
        return HubUnreachable(f"{hub} does not answer ({type(error).__name__}), {what}.", _LATER)
    if isinstance(error, OIDCError):
        return NoAccess(f"{hub} was given no proof of who asks, {what}: {error}", _PROOF)
    if isinstance(error, GatedRepoError):
        return NoAccess(f"The repository is gated, {what}.", _ASK_FOR_ACCESS)
    if isinstance(error, RepositoryNotFoundError):
        hint = "Check the name" + ("." if token else f"; if it is private: {_LOG_IN}")
        return NotOnHub(f"{hub} has no such repository, {what}.", hint)
    if isinstance(error, (RevisionNotFoundError, EntryNotFoundError)):
        return NotOnHub(f"{hub} has no such revision or file, {what}.")
    if isinstance(error, HfHubHTTPError):
        return _refused(error, what, hub, token)
    # The client checks names and cards itself before it sends them.
    checked = isinstance(error, HFValidationError) or "Invalid metadata" in str(error)
    return HubError(f"{hub} would refuse it, {what}: {error}") if checked else error


def no_token(what: str) -> NoAccess:
    """The error of somebody who is not signed in, and must be."""
    return NoAccess(f"There is no token, {what}.", _LOG_IN)


def retry_after_s(error: BaseException) -> float | None:
    """The seconds that the Hub asked to wait with this error, None if it did not say."""
    cause = error.__cause__ if isinstance(error, HubmergeError) else error
    if not isinstance(cause, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(cause.response.headers)
    if limit and limit.remaining == 0 and cause.response.status_code == 429:
        return float(limit.reset_in_seconds)
    said = str(cause.response.headers.get("retry-after", "")).strip()
    return float(said) if said.isdecimal() else None


def wait_out(error: HubUnreachable, pause_s: float, at_most_s: float) -> None:
    """Wait as long as the Hub asked, else about `pause_s`; raise the error if that is too long."""
    asked_s = retry_after_s(error)
    # Never in step with others: rivals that all wait alike meet again.
    seconds = pause_s * random.uniform(0.7, 1.3) if asked_s is None else asked_s
    if seconds > at_most_s:
        raise error
    time.sleep(seconds)


def _refused(error: HfHubHTTPError, what: str, hub: str, token: str | None) -> HubError:
    status, asked_s = error.response.status_code, retry_after_s(error)
    if status in _PASSING:
        hint = _LATER if asked_s is None else f"{_LATER} It asks to wait {asked_s:.0f} s."
        return HubUnreachable(f"{hub} cannot do it now (HTTP {status}), {what}.", hint)
    said = (error.server_message or "no reason given").strip()
    said = said.replace(token, "hf_***") if token else said
    if status in (401, 403):
        return NoAccess(f"{hub} does not allow it, {what}: {said}", _LOG_IN)
    return HubError(f"{hub} refused (HTTP {status}), {what}: {said}")


def _is_silence(error: Exception) -> bool:
    worded = isinstance(error, (OSError, RuntimeError)) and any(
        words in str(error) for words in _SILENT_WORDS
    )
    return worded or isinstance(error, _SILENCE)
