"""Whether a Hub runs on a data folder, and where: the file that a listening server leaves."""

from __future__ import annotations

import http.client
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hubmerge.durable import write_whole
from hubmerge.server.tokens import OWN_TOKEN

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ServerState:
    """A running server: its address, its process, its data folder.

    `leased` says that it was started for its clients and goes when the last of them is gone.
    """

    url: str
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

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def __str__(self) -> str:
        return f"{self.url} (process {self.pid}, data in {self.data})"


def state_file(data: Path) -> Path:
    """Where a running server says that it listens."""
    return data / "state.json"


def write_state(state: ServerState) -> None:
    """Tell others that this server listens; only its owner may know."""
    write_whole(state_file(state.data), json.dumps(asdict(state), default=str).encode())


def read_state(data: Path) -> ServerState | None:
    """The server that runs on a data folder; asked, not merely believed from the file."""
    data = data.resolve()
    try:
        state = ServerState(**{**json.loads(state_file(data).read_text()), "data": data})
    except (OSError, ValueError, TypeError):
        return None
    return state if ask_status(state.url).get("data") == str(data) else None


def ask_status(url: str, full: bool = False) -> dict[str, object]:
    """What a server says of itself: its data folder, or all; nothing if it does not answer."""
    # http.client, because no proxy may ever stand between us and loopback.
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"/api/hubmerge/status?full={full}")
        answer = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else {}
