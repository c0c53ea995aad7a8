"""The state file of a running Hub: where it listens on behalf of a data folder."""

from __future__ import annotations

import http.client
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hubmerge.durable import write_atomic
from hubmerge.server.tokens import TOKEN_FILE

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ServerState:
    """A running server: its URL, process id and data folder.

    A `leased` server was started by a client and ends with its last client.
    """

    url: str
    pid: int
    data: Path
    leased: bool = False

    @property
    def token_file(self) -> Path:
        """The file with only a write token, for HF_TOKEN_PATH."""
        return self.data / TOKEN_FILE

    @property
    def token(self) -> str:
        """A token with the write role."""
        return self.token_file.read_text()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def __str__(self) -> str:
        return f"{self.url} (process {self.pid}, data in {self.data})"


def state_file(data: Path) -> Path:
    """The path of the state file of a data folder."""
    return data / "state.json"


def write_state(state: ServerState) -> None:
    """Write the state file, readable only by its owner."""
    write_atomic(state_file(state.data), json.dumps(asdict(state), default=str).encode())


def read_state(data: Path) -> ServerState | None:
    """The server that runs on a data folder; a request verifies what the file says."""
    data = data.resolve()
    try:
        state = ServerState(**{**json.loads(state_file(data).read_text()), "data": data})
    except (OSError, ValueError, TypeError):
        return None
    return state if fetch_status(state.url).get("data") == str(data) else None


def fetch_status(url: str, full: bool = False) -> dict[str, object]:
    """The status of a server: its data folder, or all details; empty if it does not answer."""
    # http.client, because it uses no proxy for loopback.
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"/api/hubmerge/status?full={full}")
        status = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return status if isinstance(status, dict) else {}
