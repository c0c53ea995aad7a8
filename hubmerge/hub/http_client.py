"""The client library as hubmerge sets it up: timeouts, no progress bars, no Xet.

It takes a quarter of a second to import, so the first call to a Hub does it.
"""

from __future__ import annotations

import httpx2
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.utils import logging
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars


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
# LFS is faster on the embedded Hub, and works on those without a Xet write side, on which
# huggingface_hub would fail instead of falling back.
constants.HF_HUB_DISABLE_XET = True


def make_api(endpoint: str, token: str | None) -> HfApi:
    """The client of one Hub; without a token it does not look for one."""
    return HfApi(endpoint=endpoint, token=token or False)
