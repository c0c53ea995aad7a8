"""Errors of the client library as errors of hubmerge, and how long to wait before a retry.

The library's classes of errors come with its HTTP client, so they are imported when there is one.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import sleep
from typing import TYPE_CHECKING

from hubmerge.errors import (
    HubError,
    HubmergeError,
    HubOffline,
    HubUnreachable,
    NoAccess,
    NotOnHub,
)

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
# How huggingface.co ends its refusal of too many commits in an hour, without a header that says it.
_RETRY_SENTENCE = re.compile(
    r"(?:retry this action|try again) in (?:about )?(\d{1,6}|an?) (second|minute|hour|day)s?",
    re.IGNORECASE,
)
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_MAX_REASON_CHARS = 300
_RETRY_HINT = "Nothing is lost: run the same command again, or use --hub local."
_OFFLINE_HINT = (
    "Unset HF_HUB_OFFLINE, or name commits that were downloaded before by their full SHA, as "
    "owner/name@SHA; --hub local needs no network."
)


def to_hubmerge_error(error: Exception, action: str, hub_name: str, token: str | None) -> Exception:
    """An error of the client during `action` as a HubmergeError; a bug is returned unchanged.

    The token never appears in a message, even if the Hub repeats it.
    """
    from huggingface_hub import errors

    wrapped = (errors.LocalEntryNotFoundError, RuntimeError)
    while isinstance(error, wrapped) and isinstance(error.__cause__, Exception):
        # Downloads wrap any error as "not in the cache", uploads as a plain RuntimeError.
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubOffline(
            f"HF_HUB_OFFLINE is set, so {hub_name} was not asked, {action}.", _OFFLINE_HINT
        )
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
    headers, status = cause.response.headers, cause.response.status_code
    limit = parse_ratelimit_headers(headers)
    if limit and limit.remaining == 0 and status == 429:
        return float(limit.reset_in_seconds)
    seconds = parse_retry_after(headers)
    if seconds is None and status == 429:
        return _parse_retry_sentence(cause.server_message or "")
    return seconds


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds in a Retry-After header, which has a number or a date; None without one."""
    text = str(headers.get("retry-after", "")).strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    now = datetime.now(UTC)
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())


def describe_end(seconds: float) -> str:
    """The time of the day at which a wait of so many seconds ends, with its date if not today."""
    now = datetime.now().astimezone()
    end = now + timedelta(seconds=math.ceil(seconds))
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%Y-%m-%d %H:%M}"


def _parse_retry_sentence(text: str) -> float | None:
    match = _RETRY_SENTENCE.search(text)
    if match is None:
        return None
    return float(_SECONDS[match[2].lower()] * (int(match[1]) if match[1].isdecimal() else 1))


def wait_before_retry(error: HubUnreachable, delay_s: float, max_delay_s: float) -> None:
    """Wait as long as the Hub asks, else about `delay_s`; raise the error if that is too long, or
    if no Hub may be asked."""
    if isinstance(error, HubOffline):
        raise error
    asked_s = retry_after_s(error)
    # With jitter: rivals that wait equally long would collide again.
    seconds = delay_s * random.uniform(0.7, 1.3) if asked_s is None else asked_s
    if seconds > max_delay_s:
        raise error
    sleep(seconds)


def _http_error(error: HfHubHTTPError, action: str, hub_name: str, token: str | None) -> HubError:
    status, asked_s = error.response.status_code, retry_after_s(error)
    reason = " ".join((error.server_message or "no reason given").split())
    reason = reason.replace(token, "hf_***") if token else reason
    if status in _TRANSIENT_STATUSES:
        hint = _RETRY_HINT
        if asked_s is not None:
            hint += f" It asks to wait {asked_s:.0f} s, until {describe_end(asked_s)}."
        message = f"{hub_name} cannot do it now (HTTP {status}), {action}"
        # What is used up is worth knowing; the page of an overloaded gateway is not.
        is_quota = status == 429 and error.server_message
        return HubUnreachable(
            f"{message}: {reason[:_MAX_REASON_CHARS]}" if is_quota else f"{message}.", hint
        )
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
