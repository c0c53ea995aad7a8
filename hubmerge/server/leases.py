"""Use a Hub as long as needed: a running server is shared, else one is started.

Every client holds a shared lock on data/lease. A server that was started here tries to lock it
exclusively. It succeeds when the last client has ended, in whatever way, and exits with the lock
held, so a new client waits for that.
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
from hubmerge.server.data_folder import open_data_folder
from hubmerge.server.state import ServerState, read_state

_TIMEOUT_S = 30.0
_POLL_S = 0.02
_LOG_LINES = 8
_PACKAGE_PARENT = Path(__file__).parents[2]


@contextmanager
def lease(data: Path) -> Iterator[ServerState]:
    """Use the Hub of a data folder; its server ends less than a second after the last user."""
    data = open_data_folder(data)
    with (data / "lease").open("ab") as lease_file:
        _wait_for_lock(lease_file, shared=True)
        yield _find_or_start(data)


def server_in_use(data: Path) -> ServerState | None:
    """The Hub of a data folder if it is running and in use, else None.

    A leased server without users ends within a second, so its address would be useless.
    """
    while state := read_state(data):
        if not state.leased:
            return state
        with (data / "lease").open("ab") as lease_file:
            if try_lock(lease_file):
                return None
            if try_lock(lease_file, shared=True):
                return state
        # The server itself holds the lock: it ends, and another one may follow.
        time.sleep(_POLL_S)
    return None


def _find_or_start(data: Path) -> ServerState:
    with (data / "start").open("ab") as start_file:
        _wait_for_lock(start_file)
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
            # A session of its own: Ctrl-C in a client's terminal must not reach a shared server.
            start_new_session=True,
            cwd=_PACKAGE_PARENT,
        )
    # The server may end before this process: wait for it, so that no zombie remains.
    threading.Thread(target=process.wait, daemon=True).start()
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        state = read_state(data)
        if state:
            return state
        time.sleep(_POLL_S)
    process.kill()
    raise HubUnreachable(
        f"The embedded Hub did not start on {data}.", _log_tail(data / "server.log", log_start)
    )


def _wait_for_lock(file: IO[bytes], shared: bool = False) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not try_lock(file, shared):
        if time.monotonic() > deadline:
            raise HubUnreachable(
                f"Waited {_TIMEOUT_S:.0f} s for another process to unlock {file.name}.",
                "Run the command again, or end the process that locks the file.",
            )
        time.sleep(_POLL_S)


def _log_tail(log: Path, start: int) -> str:
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    return "\n".join([f"The end of {log}:", *lines[-_LOG_LINES:]])
