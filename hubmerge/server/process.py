"""The Hub as a process: one server per data folder, on loopback, gone without a trace."""

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
from hubmerge.server.state import ServerState, read_state, state_file, write_state

if TYPE_CHECKING:
    import uvicorn

TINY_CLIP_FOLDER = Path(__file__).parents[1] / "mini" / "base"

_HOST = "127.0.0.1"
_GRACE_S = 2.0
_POLL_S = 0.5
_LAST_ANSWERS_S = 5
_WAIT_S = 10.0


def serve(
    data: Path, port: int = 0, leased: bool = False, seed_from: Path | None = TINY_CLIP_FOLDER
) -> None:
    """Serve a data folder until told to stop or, if leased, until the last client is gone.

    Port 0 takes any free one. An empty Hub is seeded from a folder, or stays empty for None.
    """
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The lease is let go last: whoever waits for it must find the data folder free.
    with (data / "lease").open("ab") as lease_file, (data / "lock").open("ab") as lock:
        _hold(lock, data)
        server = _server(data, seed_from)
        with _listen(port) as listening:
            url = f"http://{_HOST}:{listening.getsockname()[1]}"
            try:
                # Who asks too early waits in the socket's queue until the server answers.
                write_state(ServerState(url, os.getpid(), data, leased))
                asyncio.run(_run(server, listening, lease_file if leased else None))
            finally:
                state_file(data).unlink(missing_ok=True)


def _hold(lock: IO[bytes], data: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not try_lock(lock):
        running = read_state(data)
        # A leased one goes within seconds, once the command that it was started for has ended.
        stays = running is not None and not running.leased
        if stays or time.monotonic() > deadline:
            raise HubmergeError(
                f"Another Hub already serves {data}: {running or 'it does not answer'}.",
                "Use that one, stop it first, or choose another data folder.",
            )
        time.sleep(_POLL_S / 10)


def _server(data: Path, seed_from: Path | None) -> uvicorn.Server:
    # Only a process that serves pays for the web server and for git.
    import uvicorn

    from hubmerge.server.app import build

    config = uvicorn.Config(
        build(data, seed_from),
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
    return uvicorn.Server(config)


def _listen(port: int) -> socket.socket:
    try:
        listening = socket.create_server((_HOST, port), backlog=512)
    except OSError as error:
        raise HubmergeError(
            f"Cannot listen on {_HOST}:{port}: {error.strerror}.", "Use another port, or 0 for any."
        ) from error
    # asyncio does not see that this is TCP; without it each answer waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


async def _run(
    server: uvicorn.Server, listening: socket.socket, lease_file: IO[bytes] | None
) -> None:
    _stop_on_signals(server)
    watching = asyncio.create_task(_watch(server, lease_file))
    await server.serve(sockets=[listening])
    watching.cancel()


async def _watch(server: uvicorn.Server, lease_file: IO[bytes] | None) -> None:
    """Stop a leased server once nobody leases it; the lock stays held while it goes."""
    if lease_file is None:
        return
    await asyncio.sleep(_GRACE_S)
    while not try_lock(lease_file):
        await asyncio.sleep(_POLL_S)
    server.should_exit = True


def _stop_on_signals(server: uvicorn.Server) -> None:
    # uvicorn raises the signal again after its shutdown; it must then find a handler that is not
    # the default one, or the process dies before it can tidy up.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
