"""A Hub for as long as somebody needs it: found if one runs, started if none does.

Every client holds data/lease shared for its life. A server started here wants it alone, gets it
when the last client is gone, however it went, and exits holding it: a new client waits for that.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hubmerge.durable import try_lock
from hubmerge.errors import HubUnreachable
from hubmerge.server.state import ServerState, read_state

_WAIT_S = 30.0
_POLL_S = 0.02
_LOG_LINES = 8
_PACKAGE_PARENT = Path(__file__).parents[2]


@contextmanager
def lease(data: Path) -> Iterator[ServerState]:
    """Use the Hub of a data folder; it outlives its last user by less than a second."""
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data / "lease").open("ab") as held:
        _wait_for(held, shared=True)
        yield _find_or_start(data)


def standing(data: Path) -> ServerState | None:
    """The Hub of a data folder if it runs and stays for now; None for one that nobody uses.

    That one goes within a second: whoever were told its address would find nobody there.
    """
    state = read_state(data)
    if state is None or not state.leased:
        return state
    with (data / "lease").open("ab") as held:
        return None if try_lock(held) else state


def _find_or_start(data: Path) -> ServerState:
    with (data / "start").open("ab") as alone:
        _wait_for(alone)
        return read_state(data) or _start(data)


def _start(data: Path) -> ServerState:
    command = [sys.executable, "-m", "hubmerge.server", "--data", str(data), "--leased"]
    with (data / "server.log").open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Its own session: Ctrl-C in the client's terminal must not reach a shared server.
            start_new_session=True,
            cwd=_PACKAGE_PARENT,
        )
    # The server may end long before we do: somebody has to collect it then.
    threading.Thread(target=process.wait, daemon=True).start()
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        state = read_state(data)
        if state:
            return state
        time.sleep(_POLL_S)
    process.kill()
    raise HubUnreachable(
        f"The embedded Hub did not start on {data}.", _last_words(data / "server.log", log_start)
    )


def _wait_for(file: IO[bytes], shared: bool = False) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not try_lock(file, shared):
        if time.monotonic() > deadline:
            raise HubUnreachable(
                f"Waited {_WAIT_S:.0f} s for another process to let go of {file.name}.",
                "Run the command again, or end the process that holds the file.",
            )
        time.sleep(_POLL_S)


def _last_words(log: Path, start: int) -> str:
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    return "\n".join([f"The end of {log}:", *lines[-_LOG_LINES:]])
