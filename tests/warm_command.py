"""A `hubmerge` for tests that starts at once: every command is a fork of a process that is warm.

A shell that runs thirty commands would import torch thirty times. Here one process imports it and
starts no thread; `hubmerge` on the PATH is a small client that hands over its words, environment,
folder and streams, and ends with the exit code of the fork. Run as a script, this file is both.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_SIZE = 1 << 20


@contextmanager
def warm_command(folder: Path, env: Mapping[str, str]) -> Iterator[Path]:
    """A folder for the PATH whose `hubmerge` is warm, for as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    address = folder / "socket"
    client = folder / "hubmerge"
    client.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISB "{__file__}" "{address}" "$@"\n')
    client.chmod(0o755)
    command = [sys.executable, "-m", "tests.warm_command", "--serve", str(address)]
    server = subprocess.Popen(command, cwd=_ROOT, env=dict(env))
    try:
        while not address.exists():
            assert server.poll() is None, "the warm process ended"
            time.sleep(0.05)
        yield folder
    finally:
        server.terminate()
        server.wait()


def serve(address: str) -> None:
    """Import everything, then fork for every command that a client hands over."""
    import hubmerge.cli.app
    import hubmerge.flows.card
    import hubmerge.flows.evaluate
    import hubmerge.flows.explain
    import hubmerge.flows.merge
    import hubmerge.flows.moerge
    import hubmerge.flows.select
    import hubmerge.flows.train
    import hubmerge.learners.factory
    import hubmerge.models.adapter
    import hubmerge.models.loading
    import hubmerge.tasks.custom_task
    import hubmerge.training.loop  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)  # it is there once it listens
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(connection: socket.socket) -> None:
    """Run the command in a fork of this fork; send its process id, then its exit code."""
    data, streams, _, _ = socket.recv_fds(connection, _SIZE, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(_SIZE)
    child = os.fork()
    if child == 0:
        connection.close()
        _run(json.loads(data), streams)
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(request: dict[str, object], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    words = request["words"]
    assert isinstance(words, list)
    sys.argv = ["hubmerge", *words]
    code: object = 1
    try:
        from hubmerge.cli import main

        code = main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def ask(address: str, words: list[str]) -> int:
    """Hand the words to the warm process; returns the exit code of the command."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ)}
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(connection, [data], [0, 1, 2])
    connection.sendall(data[sent:])
    lines = connection.makefile()
    child = int(lines.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    return int(lines.readline() or 1) % 256


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
