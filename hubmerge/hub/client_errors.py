"""Errors of the client library as errors of hubmerge, and how long to wait before a retry.

The library's classes of errors come with its HTTP client, so they are imported when there is one.
"""

from __future__ import annotations

import json
import random
from time import sleep
from typing import TYPE_CHECKING

from hubmerge.errors import HubError, HubmergeError, HubUnreachable, NoAccess, NotOnHub

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

# A Hub that is busy or restarts; 409: another commit is under way; 412: the branch has moved since
# it was read.
_TRANSIENT_STATUSES = {408, 409, 412, 425, 429, 500, 502, 503, 504}
# No response, as a plain OSError or RuntimeError: a body that was cut short, and a connection pool
# that another thread closed because its own connection failed.
_NO_RESPONSE_MESSAGES = ("Consistency check failed", "the client has been closed")

_LOG_IN_HINT = "Run `hf auth login` with a token that may write there, or set HF_TOKEN."
_ACCESS_HINT = "Ask for access on its page, then run `hf auth login` or set HF_TOKEN."
_OIDC_HINT = "Give the job `permissions: id-token: write`, or leave HF_OIDC_RESOURCE out."
_RETRY_HINT = "Nothing is lost: run the same command again, or use --hub local."


def to_hubmerge_error(error: Exception, action: str, hub_name: str, token: str | None) -> Exception:
    """An error of the client during `action` as a HubmergeError; a bug is returned unchanged.

    The token never appears in a message, even if the Hub repeats it.
    """
    from huggingface_hub import errors

    wrapped = (errors.LocalEntryNotFoundError, RuntimeError)
    while isinstance(error, wrapped) and isinstance(error.__cause__, Exception):
        # Downloads wrap any error as "not in the cache", uploads as a plain RuntimeError.
        error = error.__cause__
    if _is_no_response(error):
        return HubUnreachable(
            f"{hub_name} does not answer ({type(error).__name__}), {action}.", _RETRY_HINT
        )
    if isinstance(error, errors.OIDCError):
        return NoAccess(f"{hub_name} was given no proof of identity, {action}: {error}", _OIDC_HINT)
    if isinstance(error, errors.GatedRepoError):
        return NoAccess(f"The repository is gated, {action}.", _ACCESS_HINT)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "Check the name" + ("." if token else f"; if it is private: {_LOG_IN_HINT}")
        return NotOnHub(f"{hub_name} has no such repository, {action}.", hint)
    if isinstance(error, (errors.RevisionNotFoundError, errors.EntryNotFoundError)):
        return NotOnHub(f"{hub_name} has no such revision or file, {action}.")
    if isinstance(error, errors.HfHubHTTPError):
        return _http_error(error, action, hub_name, token)
    # The client itself checks names and cards before it sends them.
    is_invalid = isinstance(error, errors.HFValidationError) or "Invalid metadata" in str(error)
    return HubError(f"{hub_name} would refuse it, {action}: {error}") if is_invalid else error


def no_token_error(action: str) -> NoAccess:
    """The error for an action that needs a token where there is none."""
    return NoAccess(f"There is no token, {action}.", _LOG_IN_HINT)


def retry_after_s(error: BaseException) -> float | None:
    """The seconds that the Hub asks to wait after this error; None if it does not."""
    cause = error.__cause__ if isinstance(error, HubmergeError) else error
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if not isinstance(cause, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(cause.response.headers)
    if limit and limit.remaining == 0 and cause.response.status_code == 429:
        return float(limit.reset_in_seconds)
    retry_after = str(cause.response.headers.get("retry-after", "")).strip()
    return float(retry_after) if retry_after.isdecimal() else None


def wait_before_retry(error: HubUnreachable, delay_s: float, max_delay_s: float) -> None:
    """Wait as long as the Hub asks, else about `delay_s`; raise the error if that is too long."""
    asked_s = retry_after_s(error)
    # With jitter: rivals that wait equally long would collide again.
    seconds = delay_s * random.uniform(0.7, 1.3) if asked_s is None else asked_s
    if seconds > max_delay_s:
        raise error
    sleep(seconds)


def _http_error(error: HfHubHTTPError, action: str, hub_name: str, token: str | None) -> HubError:
    status, asked_s = error.response.status_code, retry_after_s(error)
    if status in _TRANSIENT_STATUSES:
        hint = _RETRY_HINT if asked_s is None else f"{_RETRY_HINT} It asks to wait {asked_s:.0f} s."
        return HubUnreachable(f"{hub_name} cannot do it now (HTTP {status}), {action}.", hint)
    reason = (error.server_message or "no reason given").strip()
    reason = reason.replace(token, "hf_***") if token else reason
    if status in (401, 403):
        return NoAccess(f"{hub_name} does not allow it, {action}: {reason}", _LOG_IN_HINT)
    return HubError(f"{hub_name} refused (HTTP {status}), {action}: {reason}")


def _is_no_response(error: Exception) -> bool:
    """Whether nothing answered, or not a Hub but the HTML page of a gateway or a login portal."""
    import httpx2
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    no_response = (
        httpx2.TransportError,
        TimeoutError,
        ConnectionError,
        LocalEntryNotFoundError,
        FileMetadataError,
        json.JSONDecodeError,
    )
    has_message = isinstance(error, (OSError, RuntimeError)) and any(
        message in str(error) for message in _NO_RESPONSE_MESSAGES
    )
    return has_message or isinstance(error, no_response)
