"""The client library as hubmerge sets it up: timeouts, no progress bars, no Xet.

It takes a quarter of a second to import, so the first call to a Hub does it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.utils import logging
from huggingface_hub.utils._http import (
    default_client_factory,
    hf_raise_for_status,
    hf_request_event_hook,
    parse_ratelimit_headers,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubmerge.hub.client_errors import parse_retry_after

# A Hub that asks to wait longer is an error at once.
_MAX_WAIT_S = 60.0
# Hosts and ports of embedded Hubs: no network leads there, so offline mode is not about them.
_embedded_addresses: set[str] = set()


def _make_http_client() -> httpx2.Client:
    """An HTTP client with timeouts; huggingface_hub's own client waits for ever.

    All threads share one client, and huggingface_hub closes it after a refused connection in any
    of them, which would cut off the responses of the others. So `close` does nothing: the client is
    freed with its last user.
    """
    client = default_client_factory()
    client.timeout = httpx2.Timeout(30.0, connect=10.0)
    client.event_hooks["request"] = [_prepare_request]
    client.event_hooks["response"].append(_raise_long_wait)
    client.close = lambda: None  # type: ignore[method-assign]
    return client


def _prepare_request(request: httpx2.Request) -> None:
    """The client library's own hook, which raises OfflineModeIsEnabled for all other Hubs."""
    is_embedded = request.url.netloc.decode() in _embedded_addresses
    if not (is_embedded and constants.is_offline_mode()):
        hf_request_event_hook(request)


def _raise_long_wait(response: httpx2.Response) -> None:
    """Raise the error of a response that asks to wait for minutes or hours.

    The client library would sleep that long inside its call, and then send the request of somebody
    who has given up.
    """
    if response.status_code not in (429, 503):
        return
    limit = parse_ratelimit_headers(response.headers)
    reset_s = limit.reset_in_seconds if limit and limit.remaining == 0 else 0
    if max(reset_s, parse_retry_after(response.headers) or 0) > _MAX_WAIT_S:
        response.read()
        hf_raise_for_status(response)


set_client_factory(_make_http_client)
disable_progress_bars()
logging.set_verbosity_error()  # type: ignore[no-untyped-call]
# LFS is faster on the embedded Hub, and works on those without a Xet write side, on which
# huggingface_hub would fail instead of falling back.
constants.HF_HUB_DISABLE_XET = True


def make_api(endpoint: str, token: str | None, is_embedded: bool) -> HfApi:
    """The client of one Hub; without a token it does not look for one."""
    if is_embedded:
        _embedded_addresses.add(urlsplit(endpoint).netloc)
    return HfApi(endpoint=endpoint, token=token or False)
