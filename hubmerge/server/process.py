"""The Hub as a process: one server per data folder, on loopback, with a clean exit."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hubmerge.durable import try_lock
from hubmerge.errors import HubmergeError
from hubmerge.server.data_folder import open_data_folder
from hubmerge.server.disk import is_disk_full, keep_reserve, release_reserve
from hubmerge.server.state import ServerState, read_state, state_file, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    import uvicorn
    from starlette.types import ASGIApp

    from hubmerge.server.faults import Fault

TINY_CLIP_FOLDER = Path(__file__).parents[1] / "mini" / "base"

_HOST = "127.0.0.1"
_POLL_S = 0.5
_SHUTDOWN_TIMEOUT_S = 5
# Clients keep idle connections for 5 s: a server that closes them then would lose requests.
_KEEP_ALIVE_S = 60
_LOCK_TIMEOUT_S = 10.0


def serve(
    data: Path,
    port: int = 0,
    leased: bool = False,
    seed_from: Path | None = TINY_CLIP_FOLDER,
    faults: Sequence[Fault] = (),
) -> None:
    """Serve a data folder until a signal or, if leased, until the last client has ended.

    Port 0 takes any free port. An empty Hub is seeded from a folder, or stays empty for None.
    With `faults`, it fails as they say. Raises HubmergeError if another server uses the folder or
    the port, or if the folder is not this user's.
    """
    data = open_data_folder(data)
    # The lease is unlocked last: a process that waits for it must find the data folder free.
    with (data / "lease").open("ab") as lease_file, (data / "lock").open("ab") as lock:
        _lock_folder(lock, data)
        server = _make_server(data, seed_from, faults)
        with _listen(port) as listening:
            url = f"http://{_HOST}:{listening.getsockname()[1]}"
            try:
                # Early requests wait in the queue of the socket until the server answers.
                _announce(ServerState(url, os.getpid(), data, leased))
                asyncio.run(_run(server, listening, lease_file if leased else None))
            finally:
                state_file(data).unlink(missing_ok=True)


def _announce(state: ServerState) -> None:
    """Write the state file; on a full disk, in the space that was kept for it."""
    try:
        write_state(state)
    except OSError as error:
        if not is_disk_full(error):
            raise
        release_reserve(state.data)
        write_state(state)
    else:
        keep_reserve(state.data)


def _lock_folder(lock: IO[bytes], data: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while not try_lock(lock):
        running = read_state(data)
        # A leased server ends within seconds after the command that started it.
        is_permanent = running is not None and not running.leased
        if is_permanent or time.monotonic() > deadline:
            raise HubmergeError(
                f"Another Hub already serves {data}: {running or 'it does not answer'}.",
                "Use that one, stop it first, or choose another data folder.",
            )
        time.sleep(_POLL_S / 10)


def _make_server(data: Path, seed_from: Path | None, faults: Sequence[Fault]) -> uvicorn.Server:
    # Imported here: only a process that serves needs the web server and dulwich.
    import uvicorn

    from hubmerge.server.app import build_app

    app: ASGIApp = build_app(data, seed_from)
    if faults:
        from hubmerge.server.faults import FaultMiddleware

        app = FaultMiddleware(app, faults)
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    return uvicorn.Server(config)


def _listen(port: int) -> socket.socket:
    try:
        listening = socket.create_server((_HOST, port), backlog=512)
    except OSError as error:
        raise HubmergeError(
            f"Cannot listen on {_HOST}:{port}: {error.strerror}.", "Use another port, or 0 for any."
        ) from error
    # asyncio does not set it on this socket; without it each response waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


async def _run(
    server: uvicorn.Server, listening: socket.socket, lease_file: IO[bytes] | None
) -> None:
    _stop_on_signals(server)
    watching = asyncio.create_task(_stop_when_unleased(server, lease_file))
    await server.serve(sockets=[listening])
    watching.cancel()


async def _stop_when_unleased(server: uvicorn.Server, lease_file: IO[bytes] | None) -> None:
    """Stop a leased server when no client holds the lease; it keeps the lock while it ends."""
    if lease_file is None:
        return
    # The client that started it has the lease, and the next command may follow at once.
    await asyncio.sleep(_POLL_S)
    while not try_lock(lease_file):
        await asyncio.sleep(_POLL_S)
    server.should_exit = True


def _stop_on_signals(server: uvicorn.Server) -> None:
    # uvicorn raises the signal again after its shutdown. Without these handlers the default one
    # would end the process before it has cleaned up.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
