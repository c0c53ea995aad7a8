"""The Hub and the folders to use: the only file below `cli` that reads environment variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hubmerge.errors import UsageError

if TYPE_CHECKING:
    from hubmerge.hub.client import Hub
    from hubmerge.server.state import ServerState

_LOOPBACK = ("127.0.0.1", "localhost")


def home() -> Path:
    """The folder of all data of hubmerge: HUBMERGE_HOME, else ~/.hubmerge."""
    return Path(os.environ.get("HUBMERGE_HOME") or "~/.hubmerge").expanduser()


def hub_folder() -> Path:
    """The data folder of the embedded Hub."""
    return home() / "hub"


def client_environment(server: ServerState) -> dict[str, str]:
    """The variables with which any client uses the embedded Hub, whatever is set already.

    The token is not among them: clients read it from the file that HF_TOKEN_PATH names.
    """
    return {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN_PATH": str(server.token_file),
        # The cache knows repositories by name only, so each Hub needs a cache folder of its own.
        "HF_HUB_CACHE": str(server.data / "cache"),
        # Faster, and a folder is one commit, which Xet uploads may split.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Empty counts as not set. Any of these would send another token, or none.
        "HF_TOKEN": "",
        "HUGGING_FACE_HUB_TOKEN": "",
        "HF_OIDC_RESOURCE": "",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        # The embedded Hub needs no network, and no proxy leads to it.
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        **{name: _without_proxy(os.environ.get(name, "")) for name in ("NO_PROXY", "no_proxy")},
        # It would name another endpoint.
        "HUGGINGFACE_CO_STAGING": "0",
        "HUBMERGE_HUB": "default",
    }


def _without_proxy(hosts: str) -> str:
    """The hosts to which no proxy leads, with those of this machine."""
    known = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join([*known, *(host for host in _LOOPBACK if host not in known)])


def connect(choice: str | None = None) -> AbstractContextManager[Hub]:
    """The Hub to work with: `local` is the embedded one, None follows HUBMERGE_HUB and HF_ENDPOINT.

    The embedded Hub is started if it is not running, and runs until its last user has finished.
    """
    return _connect(choice, _set_environment)


def connect_inside(choice: str | None = None) -> AbstractContextManager[Hub]:
    """`connect` inside a program of somebody else, whose own Hub and token stay as they are."""
    return _connect(choice, lambda server: None)


@contextmanager
def _connect(choice: str | None, prepare: Callable[[ServerState], None]) -> Iterator[Hub]:
    choice = choice or os.environ.get("HUBMERGE_HUB") or "default"
    if choice == "local":
        # Nobody else needs the server's asyncio and http.client.
        from hubmerge.server.leases import lease

        with lease(hub_folder()) as server:
            prepare(server)
            yield _open_embedded(server)
    elif choice == "default":
        yield _open_configured()
    else:
        raise UsageError(
            f"--hub {choice!r} is not a Hub.",
            "Write --hub local for the embedded Hub, or leave it out for huggingface.co "
            "(HF_ENDPOINT names another).",
        )


def _set_environment(server: ServerState) -> None:
    """Set what huggingface_hub reads when it is imported, which has not happened in a command."""
    variables = client_environment(server)
    del variables["HUBMERGE_HUB"]
    os.environ.update({**variables, "HF_TOKEN": server.token})


def find_cached(repo_id: str, revision: str | None) -> Path | None:
    """The folder in the user's cache that has the config.json of a repository, None without it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _open_embedded(server: ServerState) -> Hub:
    from hubmerge.hub.client import Hub

    # A cache of its own: that of huggingface_hub knows repositories by name only.
    cache = server.data / "cache"
    return Hub(server.url, lambda: server.token, cache, "the embedded Hub", is_embedded=True)


def _open_configured() -> Hub:
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    from huggingface_hub import constants

    from hubmerge.hub.client import Hub

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname or address.username:
        raise UsageError(
            "HF_ENDPOINT is not the address of a Hub.", "Write https://host, without a password."
        )
    sign_in = partial(_sign_in, address.netloc)
    return Hub(endpoint, sign_in, Path(constants.HF_HUB_CACHE), address.netloc)


def _sign_in(hub_name: str) -> str | None:
    """The user's token, which a trusted CI job exchanges for its OIDC token."""
    from huggingface_hub import get_token

    from hubmerge.hub.client_errors import to_hubmerge_error

    try:
        return get_token()
    except Exception as error:
        raise to_hubmerge_error(error, "signing in", hub_name, None) from error
