"""Whether a Hub runs on a data folder, and where: the file that a listening server leaves."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hubmerge.durable import write_whole
from hubmerge.server.tokens import OWN_TOKEN

STATUS_PATH = "/api/hubmerge/status"
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ServerState:
    """A running server: its address, its process, its data folder.

    `leased` says that it was started for its clients and goes when the last of them is gone.
    """

    url: str
    port: int
    pid: int
    data: Path
    leased: bool = False

    @property
    def token_file(self) -> Path:
        """A file that holds a token that may write and nothing else, for HF_TOKEN_PATH."""
        return self.data / OWN_TOKEN

    @property
    def token(self) -> str:
        """A token that may write."""
        return self.token_file.read_text()

    def __str__(self) -> str:
        return f"{self.url} (process {self.pid}, data in {self.data})"


def state_file(data: Path) -> Path:
    """Where a running server says that it listens."""
    return data / "state.json"


def write_state(state: ServerState) -> None:
    """Tell others that this server listens; only its owner may know."""
    told = {
        "url": state.url,
        "port": state.port,
        "pid": state.pid,
        "data": str(state.data),
        "token_file": str(state.token_file),
        "leased": state.leased,
    }
    write_whole(state_file(state.data), json.dumps(told).encode())


def read_state(data: Path) -> ServerState | None:
    """The server that runs on a data folder; asked, not merely believed from the file."""
    data = data.resolve()
    try:
        told = json.loads(state_file(data).read_text())
        state = ServerState(told["url"], told["port"], told["pid"], data, told["leased"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if ask_status(state.url).get("data") == str(data) else None


def ask_status(url: str) -> dict[str, object]:
    """What a server says of itself; nothing if it does not answer."""
    # http.client, because no proxy may ever stand between us and loopback.
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", STATUS_PATH)
        answer = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else {}
